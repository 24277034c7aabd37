"""A recipe's passes tell their names and the options that are bound, optional or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from diffc.compiler.recipe import Pass, is_unchanged, name_of, optional, options_of


def halve(number: float, *, times: int = 1) -> float:
    """Divide by two."""
    return number / 2**times


@pytest.mark.parametrize(
    ("rewrite", "options"),
    [(halve, {}), (partial(halve, times=3), {"times": 3}), (optional(halve), {})]
    + [(optional(partial(halve, times=3)), {"times": 3})],
)
def test_passes_tell_their_names_and_options(rewrite: Pass[float], options: Mapping[str, Any]) -> None:
    assert (name_of(rewrite), options_of(rewrite)) == ("halve", options)
    assert rewrite(8.0) == halve(8.0, **options)


@dataclass(frozen=True)
class Holder:
    """Hold an array that a comparison would not look at."""

    name: str
    data: np.ndarray[Any, Any] = field(compare=False)
    parts: tuple[Any, ...] = ()


def test_a_value_is_unchanged_if_all_its_parts_are() -> None:
    data = np.zeros(3)
    holder = Holder("a", data, (1, [2.0, None], data))
    assert is_unchanged(holder, replace(holder, parts=(1, [2.0, None], data)))
    changes: list[dict[str, Any]] = [{"name": "b"}, {"data": data.copy()}, {"parts": (1, [2.5, None], data)}]
    changes += [
        {"parts": (1, [2.0, None])},
        {"parts": (1, [2.0, None], data.copy())},
        {"parts": [1, [2.0, None], data]},
    ]
    for change in changes:
        assert not is_unchanged(holder, replace(holder, **change))
