"""Build the tensor of a literal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffc.runtime.errors import VerifyError
from diffc.runtime.program.program import Literal, Type


def constant(literal: Literal, type_: Type) -> NDArray[Any]:
    """Build the tensor of a number, the value of every element, or of nested lists of numbers.

    A port of floats takes integers as well. Raises `VerifyError` where the numbers do not have the type, or the lists
    do not have the shape.
    """
    dtype = np.dtype(type_.dtype)
    kinds: tuple[type, ...] = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    numbers, shape = _flat(literal)
    fits = all(isinstance(n, kinds) and isinstance(n, bool) == (dtype.kind == "b") for n in numbers)
    if not fits or (isinstance(literal, tuple) and shape != type_.shape):
        raise VerifyError("a literal has another type or shape than its port", where=str(type_))
    try:
        with np.errstate(over="ignore"):
            flat = np.array(numbers, dtype)
    except OverflowError as error:
        raise VerifyError(f"a literal does not fit {type_.dtype}", where=str(numbers)[:80]) from error
    return flat.reshape(type_.fixed) if isinstance(literal, tuple) else np.broadcast_to(flat[0], type_.fixed)


def _flat(literal: Literal) -> tuple[list[Literal], tuple[int, ...]]:
    if not isinstance(literal, tuple):
        return [literal], ()
    items = [_flat(item) for item in literal]
    inner = {shape for _, shape in items} or {()}
    if len(inner) > 1:
        raise VerifyError("the lists of a literal differ in length", where=str(literal)[:80])
    return [number for numbers, _ in items for number in numbers], (len(items), *inner.pop())
