"""Build tensors of literals, and refuse literals of another type or shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffc.runtime.errors import VerifyError
from diffc.runtime.program.constant import constant
from diffc.runtime.program.program import Type


@pytest.mark.parametrize(
    ("literal", "type_", "expected"),
    [
        (3, Type("int64", ()), np.int64(3)),
        (3, Type("float16", (2,)), np.array([3, 3], np.float16)),
        (((1, 2.5),), Type("float32", (1, 2)), np.array([[1, 2.5]], np.float32)),
        (True, Type("bool", ()), np.bool_(True)),
        ((), Type("int64", (0,)), np.zeros(0, np.int64)),
        (float("inf"), Type("float32", ()), np.float32("inf")),
    ],
)
def test_literals_are_tensors(literal: Any, type_: Type, expected: Any) -> None:
    made = constant(literal, type_)
    assert made.dtype == expected.dtype and made.shape == type_.shape
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize(
    ("literal", "type_"),
    [
        (1.5, Type("int64", ())),
        (1, Type("bool", ())),
        (True, Type("int64", ())),
        (True, Type("float32", ())),
        ("a", Type("float32", ())),
        (None, Type("float32", ())),
        ((1, 2), Type("int64", (3,))),
        (((1, 2), (3,)), Type("int64", (2, 2))),
        ((1, (2,)), Type("int64", (2,))),
        (300, Type("uint8", ())),
        (10**390, Type("float64", ())),
        (2**63, Type("int64", ())),
    ],
)
def test_refuses_literals_of_another_type(literal: Any, type_: Type) -> None:
    with pytest.raises(VerifyError, match="literal"):
        constant(literal, type_)
