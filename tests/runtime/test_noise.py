"""Sample operations of programs."""

from __future__ import annotations

import pytest

from diffc.runtime.noise import sampled
from diffc.runtime.program.parse import read_program
from diffc.runtime.rng import Generator


@pytest.mark.parametrize(
    ("operation", "values"),
    [
        ("float32[1, 4] = noise()", Generator(3).randn((2, 4))),
        ('float64[1, 4] = noise(kind="uniform")', Generator(3).uniform((2, 4), "float64")),
        ('float32[1, 4] = noise(kind="exponential")', Generator(3).exponential((2, 4))),
        ('int64[1, 4] = noise(kind="integers", low=2, high=9)', Generator(3).integers((2, 4), 2, 9)),
    ],
)
def test_an_operation_stands_for_values_of_its_kind(operation: str, values: object) -> None:
    [op] = read_program(f"program p() {{ n: {operation} return n }}").ops
    assert sampled(op, Generator(3), (2, 4)).tolist() == values.tolist()  # type: ignore[attr-defined]
