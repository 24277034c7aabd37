"""Decide comparisons by the range of values: an image of the request lies in [0, 1], whatever it shows.

Pipelines read the smallest value of an image to guess its range; the range is known at build.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.aten import Trait, has

Bounds = tuple[float, float]

aten = torch.ops.aten
COMPARED: dict[Any, Callable[[float, float, float], bool | None]] = {
    aten.lt.Scalar: lambda low, high, than: True if high < than else False if low >= than else None,
    aten.le.Scalar: lambda low, high, than: True if high <= than else False if low > than else None,
    aten.gt.Scalar: lambda low, high, than: True if low > than else False if high <= than else None,
    aten.ge.Scalar: lambda low, high, than: True if low >= than else False if high < than else None,
}

MONOTONE = (
    *(aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor, aten.div.Tensor, aten.neg.default),
    *(aten.round.default, aten.floor.default, aten.trunc.default, aten.clamp.default, aten.sqrt.default),
)
"""Operators that rise or fall with their tensor, wherever it is, if all else is constant."""


class Ranged:
    """Represent a number known only at run time, whose range decides comparisons with it."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds

    def __lt__(self, than: float) -> bool:
        return self._compare(aten.lt.Scalar, than)

    def __le__(self, than: float) -> bool:
        return self._compare(aten.le.Scalar, than)

    def __gt__(self, than: float) -> bool:
        return self._compare(aten.gt.Scalar, than)

    def __ge__(self, than: float) -> bool:
        return self._compare(aten.ge.Scalar, than)

    def _compare(self, func: Any, than: float) -> bool:
        outcome = COMPARED[func](*self.bounds, float(than))
        if outcome is None:
            raise CaptureError(f"a number between {self.bounds[0]} and {self.bounds[1]} is compared with {than}")
        return outcome


def range_of_results(func: Any, operands: Iterable[Bounds | None], dtype: torch.dtype, terms: int) -> Bounds | None:
    """Return the range of an operator's results, if it keeps ranges and that of every tensor operand is known.

    Each result has ``terms`` operands: a sum multiplies the range by their number.
    """
    known = list(operands)
    if dtype == torch.bool:
        return 0.0, 1.0
    if func in (aten.sum.default, aten.sum.dim_IntList) and known[0] is not None:
        return known[0][0] * terms, known[0][1] * terms
    if not has(func, Trait.BOUNDED) or not known or None in known:
        return None
    return min(b[0] for b in known if b), max(b[1] for b in known if b)


def decided(func: Any, bounds: Bounds | None, args: tuple[Any, ...], shape: Iterable[int]) -> torch.Tensor | None:
    """Return the outcome of a comparison with a number, if the range alone decides it."""
    rule = COMPARED.get(func)
    if rule is None or bounds is None or len(args) < 2 or not isinstance(args[1], int | float):
        return None
    outcome = rule(*bounds, float(args[1]))
    return None if outcome is None else torch.full(tuple(shape), outcome)


def range_of_monotone(func: Any, args: tuple[Any, ...], kwargs: Any, bounds: Bounds | None) -> Bounds | None:
    """Return the range of the results of an operator that rises or falls with its only operand, of known range."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.dim()]
    if (
        func not in MONOTONE
        or bounds is None
        or len(tensors) != 1
        or (func is aten.div.Tensor and args[1] is tensors[0])
    ):
        return None
    ends = [func(*(torch.tensor(end) if arg is tensors[0] else arg for arg in args), **kwargs).item() for end in bounds]
    return (min(ends), max(ends)) if all(map(math.isfinite, ends)) else None
