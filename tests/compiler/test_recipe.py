"""A recipe's passes tell their names and the options that are bound, optional or not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from diffc.compiler.recipe import Pass, name_of, optional, options_of


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
