"""Follow a number of the request, such as the guidance scale, through a trace that sees only floats.

A `Scalar` notes what it is compared with: those are the guards. The trace is repeated at other values; the constants
that differ are fitted by polynomials in the number, and written as ``linear``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffc.compiler.graph.aten import overload
from diffc.compiler.ir.program import Guard, Literal, Op, Polynomial, Ref, Table, Type, Value

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
NEGATED = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}

aten = torch.ops.aten
SCALED = (aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar, aten.mul.Scalar, aten.div.Scalar)
"""Operators whose second argument is a number, but may as well be a tensor that has no axes."""


class Scalar(float):
    """Behave as a float that notes every comparison as a guard.

    Sums with constants and multiples are ``slope * root + shift`` of the request's scalar, the root, and note what a
    comparison implies for it. ``slope`` is NaN in other functions of it: a comparison then fixes the root.
    """

    name: str
    guards: list[Guard]
    root: float
    slope: float
    shift: float

    def __new__(cls, value: float, name: str, guards: list[Guard]) -> Scalar:
        """Follow a number of the request by its name."""
        scalar = super().__new__(cls, value)
        scalar.name, scalar.guards, scalar.root, scalar.slope, scalar.shift = name, guards, float(value), 1.0, 0.0
        return scalar

    def __deepcopy__(self, _: object) -> Scalar:
        return self

    def _note(self, comparison: str, operand: float) -> bool:
        holds = COMPARISONS[comparison](float(self), float(operand))
        relation = comparison if holds else NEGATED[comparison]
        bound = (float(operand) - self.shift) / self.slope if self.slope and type(operand) is not Scalar else math.nan
        guard = Guard(self.name, relation if self.slope > 0 else FLIPPED.get(relation, relation), bound)
        if not math.isfinite(bound) or not COMPARISONS[guard.comparison](self.root, bound):
            guard = Guard(self.name, "==", self.root)
        if guard not in self.guards:
            self.guards.append(guard)
        return holds

    def _made(self, value: float, slope: float, shift: float) -> Scalar:
        scalar = Scalar(value, self.name, self.guards)
        scalar.root, scalar.slope = self.root, math.nan if type(slope) is Scalar or type(shift) is Scalar else slope
        scalar.shift = float(shift)
        return scalar

    def __add__(self, operand: float) -> Any:
        value = super().__add__(operand)
        return value if value is NotImplemented else self._made(value, self.slope, self.shift + operand)

    def __sub__(self, operand: float) -> Any:
        value = super().__sub__(operand)
        return value if value is NotImplemented else self._made(value, self.slope, self.shift - operand)

    def __rsub__(self, operand: float) -> Any:
        value = super().__rsub__(operand)
        return value if value is NotImplemented else self._made(value, -self.slope, operand - self.shift)

    def __mul__(self, operand: float) -> Any:
        value = super().__mul__(operand)
        return value if value is NotImplemented else self._made(value, self.slope * operand, self.shift * operand)

    def __truediv__(self, operand: float) -> Any:
        value = super().__truediv__(operand)
        return value if value is NotImplemented else self._made(value, self.slope / operand, self.shift / operand)

    def __rtruediv__(self, operand: float) -> Any:
        value = super().__rtruediv__(operand)
        return value if value is NotImplemented else self._made(value, math.nan, 0.0)

    def __pow__(self, operand: Any, modulo: None = None) -> Any:
        value = super().__pow__(operand)
        return value if value is NotImplemented else self._made(value, math.nan, 0.0)

    def __neg__(self) -> Scalar:
        return self._made(-float(self), -self.slope, -self.shift)

    def __abs__(self) -> Scalar:
        return self._made(abs(float(self)), math.nan, 0.0)

    __radd__, __rmul__ = __add__, __mul__

    def __gt__(self, operand: float) -> bool:
        return self._note(">", operand)

    def __ge__(self, operand: float) -> bool:
        return self._note(">=", operand)

    def __lt__(self, operand: float) -> bool:
        return self._note("<", operand)

    def __le__(self, operand: float) -> bool:
        return self._note("<=", operand)

    def __eq__(self, operand: object) -> bool:
        return isinstance(operand, int | float) and self._note("==", operand)

    def __ne__(self, operand: object) -> bool:
        return not isinstance(operand, int | float) or self._note("!=", operand)

    def __bool__(self) -> bool:
        return self._note("!=", 0.0)

    __hash__ = float.__hash__


def fit_polynomials(
    scalar: str,
    points: Sequence[float],
    ops: Sequence[Op],
    tables: Sequence[Mapping[str, Table]],
    others: Sequence[Sequence[Op]],
) -> tuple[list[Op], dict[str, Table]] | None:
    """Replace the constants that differ between traces by polynomials; None where none fits, or the traces differ."""
    if len(points) < 4 or any(len(repeated) != len(ops) for repeated in others):
        return None
    merger = _Merger(scalar, points, tables)
    for same in zip(ops, *others, strict=True):
        merged = merger.merge(same)
        if merged is None:
            return None
        merger.ops.append(merged)
    return merger.ops, {**tables[0], **merger.tables}


def combine(original: Sequence[Op], first: Sequence[Op], second: Sequence[Op]) -> list[Op] | None:
    """Join the polynomials that were found in two scalars; None where a constant depends on both."""
    ops, ones, others = list[Op](), iter(first), iter(second)
    for op in original:
        mine, theirs = _after_linears(ones, ops), _after_linears(others, ops)
        pairs = zip((*op.args, *op.attrs), (*mine.args, *mine.attrs), (*theirs.args, *theirs.attrs), strict=True)
        if any(was not in (a, b) for was, a, b in pairs):
            return None
        args = tuple(a if b == was else b for was, a, b in zip(op.args, mine.args, theirs.args, strict=True))
        attrs = tuple(a if b == was else b for was, a, b in zip(op.attrs, mine.attrs, theirs.attrs, strict=True))
        ops.append(replace(op, args=args, attrs=attrs))
    return ops


def _after_linears(source: Iterator[Op], ops: list[Op]) -> Op:
    """Move the leading ``linear`` operations, which no trace has, and return the one that follows them."""
    for op in source:
        if op.operator != "linear":
            return op
        if op not in ops:
            ops.append(op)
    raise AssertionError("the operations of a trace came to an end")


class _Merger:
    """Walk one operation of several traces, and write constants that differ as ``linear`` of the scalar's powers."""

    def __init__(self, scalar: str, points: Sequence[float], tables: Sequence[Mapping[str, Table]]) -> None:
        self.scalar, self.points, self.inputs = scalar, np.array(points), tables
        self.ops, self.tables = list[Op](), dict[str, Table]()
        self.count = 0

    def merge(self, same: Sequence[Op]) -> Op | None:
        first = same[0]
        if any(
            (op.operator, op.results, op.coefficients) != (first.operator, first.results, first.coefficients)
            for op in same
        ):
            return None
        if any(len(op.args) != len(first.args) or len(op.attrs) != len(first.attrs) for op in same):
            return None
        columns = zip(*(op.args for op in same), strict=True)
        args = [self._literal(column, _takes_tensor(first.operator, at)) for at, column in enumerate(columns)]
        takes = overload(first.operator) is None
        values = [
            self._literal(column, takes) for column in zip(*((v for _, v in op.attrs) for op in same), strict=True)
        ]
        if any(value is _UNEQUAL for value in (*args, *values)):
            return None
        return replace(first, args=tuple(args), attrs=tuple(zip((k for k, _ in first.attrs), values, strict=True)))

    def _literal(self, column: Sequence[Literal], takes_tensor: bool) -> Any:
        if all(item == column[0] for item in column):
            return column[0]
        if not takes_tensor:
            return _UNEQUAL
        arrays = [self._array(item, table) for item, table in zip(column, self.inputs, strict=True)]
        shapes = {None if array is None else array.shape for array in arrays}
        if None in shapes or len(shapes) > 1:
            return _UNEQUAL
        return self._fit(np.stack([a for a in arrays if a is not None]))

    def _array(self, item: Literal, tables: Mapping[str, Table]) -> np.ndarray[Any, Any] | None:
        if isinstance(item, Ref):
            return tables[item.name].data if item.name in tables else None
        try:
            return np.asarray(item, dtype=np.float64)
        except (TypeError, ValueError):
            return None

    def _fit(self, samples: np.ndarray[Any, Any]) -> Any:
        """Fit a polynomial of the lowest degree up to two that meets all points."""
        flat = samples.reshape(len(samples), -1).astype(np.float64)
        if not np.isfinite(flat).all():
            return _UNEQUAL
        powers = np.vander(self.points, 3, increasing=True)
        sizes = np.abs(flat).max(axis=1, keepdims=True)
        tolerance = 1e-6 * np.maximum(sizes, sizes[0])  # at each point; the first is the default
        bounds = (tolerance / np.maximum(np.abs(powers), 1e-300)).min(axis=0)[:, None]
        farthest = int(np.abs(self.points[:3] - self.points[0]).argmax())
        for fitted in ([0], [0, farthest], [0, 1, 2]):
            factors = np.zeros((3, flat.shape[1]))
            factors[: len(fitted)] = np.linalg.solve(powers[fitted, : len(fitted)], flat[fitted])
            factors[np.abs(factors) < bounds] = 0.0
            factors = np.where(np.abs(factors - factors.round(6)) < bounds / 10, factors.round(6), factors)
            if (np.abs(powers @ factors - flat) <= tolerance).all():
                return self._linear(factors, samples.shape[1:])
        return _UNEQUAL

    def _linear(self, factors: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Ref:
        """Append the ``linear`` of powers of the scalar that has these factors, for each element of a shape."""
        monomials = [(self.scalar,) * power for power in range(3)]
        if (factors == factors[:, :1]).all():
            coefficients: tuple[Polynomial, ...] = (
                Polynomial.of(dict(zip(monomials, factors[:, 0].tolist(), strict=True))),
            )
            operands: list[Literal] = []
        else:
            coefficients = tuple(Polynomial.of({monomial: 1.0}) for monomial in monomials)
            operands = [self._table(row.reshape(shape)) for row in factors]
        self.count += 1
        result = Value(f"{self.scalar}_{self.count}", Type("float32", shape))
        self.ops.append(Op("linear", tuple(operands), (), coefficients, (result,)))
        return Ref(result.name)

    def _table(self, data: np.ndarray[Any, Any]) -> Ref:
        table = Table.of(data.astype(np.float32))
        self.tables[table.name] = table
        return Ref(table.name)


def _takes_tensor(operator: str, position: int) -> bool:
    """Return whether an argument may be a tensor where the trace recorded a number."""
    function = overload(operator)
    if function is None or (position == 1 and function in SCALED):
        return True
    return "Tensor" in str(function._schema.arguments[position].type)


_UNEQUAL = object()
