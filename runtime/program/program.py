"""Define the program as the runtime sees it: the part of ``compiler/ir/program.py`` that can be executed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffc.runtime.errors import BundleError

BUILTINS = ("tokenize", "noise", "linear", "split", "concat", "step")
DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@dataclass(frozen=True)
class Type:
    """Describe a tensor, a batch of texts (dtype ``text``) or a scalar of the request (dtype ``scalar``)."""

    dtype: str
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "scalar" if self.dtype == "scalar" else f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Value:
    """Name a value and its type."""

    name: str
    type: Type


@dataclass(frozen=True)
class Ref:
    """Refer to a value by its name."""

    name: str


Literal = Ref | bool | int | float | str | None | tuple["Literal", ...]


@dataclass(frozen=True)
class Polynomial:
    """Hold a polynomial in the scalars of the request: factors and the names that each is multiplied by."""

    terms: tuple[tuple[float, tuple[str, ...]], ...]

    def __call__(self, scalars: Mapping[str, float]) -> float:
        """Evaluate at the scalars of a request."""
        return float(sum(factor * math.prod(scalars[name] for name in names) for factor, names in self.terms))


@dataclass(frozen=True)
class Op:
    """Apply a graph or a built-in; ``source`` is the line that says so."""

    operator: str
    args: tuple[Literal, ...]
    attrs: Mapping[str, Literal]
    coefficients: tuple[Polynomial, ...]
    results: tuple[Value, ...]
    source: str

    def reads(self) -> Iterator[str]:
        """Yield the names of the values that are read."""
        return (item.name for item in (*self.args, *self.attrs.values()) if isinstance(item, Ref))


@dataclass(frozen=True)
class Input:
    """Declare what a request gives: ``text[batch]``, a scalar with its default, a picture in [0, 1], or a tensor."""

    name: str
    type: Type
    default: float | None
    is_picture: bool = False


@dataclass(frozen=True)
class Guard:
    """State the condition under which the program is what the pipeline would have done."""

    scalar: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.scalar} {self.comparison} {self.bound}"

    def holds(self, scalars: Mapping[str, float]) -> bool:
        """Say whether the scalars of a request meet the condition."""
        return self.scalar in scalars and COMPARISONS[self.comparison](scalars[self.scalar], self.bound)


@dataclass(frozen=True)
class Graph:
    """Declare a tensor function by its ports."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True)
class Program:
    """Hold one sampler, from the texts of a request to its pictures, films, sounds or whatever else it makes."""

    name: str
    inputs: tuple[Input, ...]
    guards: tuple[Guard, ...]
    graphs: Mapping[str, Graph]
    tables: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]

    @property
    def texts(self) -> tuple[Input, ...]:
        """List the texts that a request gives."""
        return tuple(item for item in self.inputs if item.type.dtype == "text")

    @property
    def scalars(self) -> Mapping[str, float | None]:
        """Map the scalars that a request gives to their defaults."""
        return {item.name: item.default for item in self.inputs if item.type.dtype == "scalar"}

    @property
    def arrays(self) -> tuple[Input, ...]:
        """List the pictures, [batch, channels, height, width], and the other tensors that a request gives."""
        return tuple(item for item in self.inputs if item.type.dtype not in ("text", "scalar"))

    @property
    def noises(self) -> tuple[Value, ...]:
        """List the draws of normal numbers, in order."""
        return tuple(op.results[0] for op in self.ops if op.operator == "noise")

    @property
    def types(self) -> Mapping[str, Type]:
        """Map every value to its type."""
        given = {item.name: item.type for item in self.inputs} | {item.name: item.type for item in self.tables}
        return given | {value.name: value.type for op in self.ops for value in op.results}

    @property
    def batch(self) -> int:
        """Count the pictures of one execution."""
        return self.types[self.outputs[0]].shape[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """Give the width and height of what is drawn; None where that is no picture."""
        shape = self.types[self.outputs[0]].shape
        return (shape[-1], shape[-2]) if is_picture(shape) else None


def constant(literal: Literal, type_: Type) -> NDArray[Any]:
    """Make the tensor that a number (everywhere the same) or nested lists of numbers stand for.

    Raises `BundleError` where the numbers do not have the type, or the lists do not have the shape.
    """
    dtype = np.dtype(type_.dtype)
    kinds: tuple[type, ...] = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    numbers, shape = _flat(literal)
    fits = all(isinstance(n, kinds) and isinstance(n, bool) == (dtype.kind == "b") for n in numbers)
    if not fits or (isinstance(literal, tuple) and shape != type_.shape):
        raise BundleError("program text: a literal has another type or shape than its port", where=str(type_))
    try:
        with np.errstate(over="ignore"):
            flat = np.array(numbers, dtype)
    except OverflowError as error:
        raise BundleError(f"program text: a literal does not fit {type_.dtype}", where=str(numbers)[:80]) from error
    return flat.reshape(type_.shape) if isinstance(literal, tuple) else np.broadcast_to(flat[0], type_.shape)


def _flat(literal: Literal) -> tuple[list[Literal], tuple[int, ...]]:
    if not isinstance(literal, tuple):
        return [literal], ()
    items = [_flat(item) for item in literal]
    inner = {shape for _, shape in items} or {()}
    if len(inner) > 1:
        raise BundleError("program text: the lists of a literal differ in length", where=str(literal)[:80])
    return [number for numbers, _ in items for number in numbers], (len(items), *inner.pop())


def is_picture(shape: Sequence[int]) -> bool:
    """Say whether a result [N, C, H, W] or [N, F, C, H, W] is for people's eyes: grey or colour, still or moving."""
    return len(shape) in (4, 5) and shape[-3] in (1, 3)
