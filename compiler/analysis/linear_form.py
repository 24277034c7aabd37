"""Express values of a program as sums of atoms, as far as its arithmetic is linear.

An atom is a value that no sum explains: the result of a call, noise, an input. Coefficients are polynomials in the
scalars of the request, in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import torch

from diffc.compiler.graph.aten import Trait, has, overload
from diffc.compiler.ir.program import FLOATS, UNTYPED, Literal, Op, Polynomial, Program, Ref

aten = torch.ops.aten

Sum = dict[str, Polynomial]
"""Coefficients by atom; the empty name stands for the constant term."""

FLOATING = (*FLOATS, UNTYPED.dtype)
ONE = Polynomial.constant(1.0)

ROUNDING = 1e-12
"""The largest residue of a coefficient that should have vanished, relative to the terms that cancelled."""

GROWTH = 100.0
"""A sum is not expressed by another value if its coefficients grow by more than this: too much would cancel."""

SIGNS: Mapping[Any, Callable[[float], tuple[float, float]]] = {
    **dict.fromkeys((aten.add.Tensor, aten.add.Scalar), lambda alpha: (1.0, alpha)),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar), lambda alpha: (1.0, -alpha)),
    **dict.fromkeys((aten.rsub.Tensor, aten.rsub.Scalar), lambda alpha: (-alpha, 1.0)),
}
"""Factors of the two operands of an addition, by the factor ``alpha`` of its second."""

CONSTANTS = {aten.zeros_like.default: 0.0, aten.ones_like.default: 1.0}
"""Operators whose result has one value everywhere."""


def added(*terms: tuple[Mapping[str, Polynomial], Polynomial]) -> Sum:
    """Add sums times factors, and drop the coefficients that cancel."""
    total: Sum = {}
    magnitude: dict[str, float] = {}
    for addend, factor in terms:
        for atom, coefficient in addend.items():
            term = coefficient * factor
            total[atom] = total.get(atom, Polynomial()) + term
            magnitude[atom] = magnitude.get(atom, 0.0) + term.size
    return {atom: c for atom, c in total.items() if not c.size <= ROUNDING * magnitude[atom] < math.inf}


def combined(sums: Sequence[Sum], coefficients: Sequence[Polynomial]) -> Sum:
    """Add sums as ``linear`` does: a coefficient for each, and perhaps a constant term."""
    constant = coefficients[len(sums)] if len(coefficients) > len(sums) else Polynomial()
    return added(*zip(sums, coefficients, strict=False), ({"": ONE}, constant))


def substituted(sums: Mapping[str, Sum], atom: str, name: str, definition: Sum) -> dict[str, Sum] | None:
    """Express the sums that contain an atom by a new one, ``name``, which is ``definition`` of it and others.

    Return None where a sum would grow longer, or its coefficients much larger.
    """
    inverse = Polynomial.constant(1.0 / definition[atom]({}))
    rest = {term: coefficient for term, coefficient in definition.items() if term != atom}
    changed = dict[str, Sum]()
    for key, before in sums.items():
        if atom not in before:
            continue
        factor = before[atom] * inverse
        others = {term: coefficient for term, coefficient in before.items() if term != atom}
        changed[key] = added((others, ONE), ({name: ONE}, factor), (rest, factor * Polynomial.constant(-1.0)))
    return changed if all(_is_no_worse(after, sums[key]) for key, after in changed.items()) else None


def _is_no_worse(new: Sum, old: Sum) -> bool:
    bound = GROWTH * sum(c.size for c in old.values())
    return len(new) <= len(old) and (len(new) == 1 or sum(c.size for c in new.values()) <= bound)


class LinearForms:
    """Hold a sum for each value of a program that has one; ``opaque`` names values that are never part of a sum."""

    def __init__(self, program: Program, opaque: Container[str]) -> None:
        self.types, self.opaque = program.types(), opaque
        self.tables = {table.name: table.data for table in program.tables}
        self.sums: dict[str, Sum] = {name: {name: ONE} for name in self.tables}

    def of_operation(self, op: Op) -> Sum | None:
        """Return the sum that an operation computes, or None if it is not linear."""
        if op.operator == "linear":
            return self._combination(op.args, op.coefficients)
        function = overload(op.operator)
        if function is None or op.results[0].type.dtype not in FLOATING:
            return None
        if has(function, Trait.IDENTITY):
            return self.of_operand(op.args[0]) if self._keeps_shape(op) else None
        if function is aten.copy.default:
            same = isinstance(op.args[1], Ref) and self.types.get(op.args[1].name) == op.results[0].type
            return self.of_operand(op.args[1]) if same else None
        if function in CONSTANTS:
            return added(({"": ONE}, Polynomial.constant(CONSTANTS[function])))
        return self._arithmetic(op, function)

    def of_operand(self, literal: Literal) -> Sum | None:
        """Return the sum that a floating-point value or a number stands for, or None if it stands for none."""
        if isinstance(literal, Ref):
            if literal.name in self.opaque or self.types.get(literal.name, UNTYPED).dtype not in FLOATING:
                return None
            return self.sums.setdefault(literal.name, {literal.name: ONE})
        if isinstance(literal, int | float) and not isinstance(literal, bool):
            return {"": Polynomial.constant(literal)}
        return None

    def are_atoms(self, names: Iterable[str]) -> None:
        """Replace the sums of values by atoms."""
        for name in names:
            self.sums[name] = {name: ONE}

    def is_atom(self, name: str) -> bool:
        """Return whether a value is one atom of its own type, perhaps under another name."""
        form = self.sums[name]
        atom = next(iter(form), "")
        return len(form) == 1 and form[atom] == ONE and bool(atom) and self.types.get(atom) == self.types.get(name)

    def _combination(self, operands: Sequence[Literal], coefficients: Sequence[Polynomial]) -> Sum | None:
        sums = [form for operand in operands if (form := self.of_operand(operand)) is not None]
        return combined(sums, coefficients) if len(sums) == len(operands) else None

    def _keeps_shape(self, op: Op) -> bool:
        source = op.args[0]
        if not isinstance(source, Ref) or source.name in self.opaque:
            return False
        before, after = self.types[source.name], op.results[0].type
        return UNTYPED not in (before, after) and before.shape == after.shape and before.is_float

    def _arithmetic(self, op: Op, function: Any) -> Sum | None:
        if any(name in self.opaque for name in op.reads()):
            return None
        if function in SIGNS:
            return self._addition(op, SIGNS[function])
        if function in (aten.mul.Tensor, aten.mul.Scalar):
            return self._product(*op.args[:2])
        if function in (aten.div.Tensor, aten.div.Scalar):
            return self._quotient(*op.args)
        if function is aten.neg.default:
            return self._combination(op.args, [Polynomial.constant(-1.0)])
        return None

    def _addition(self, op: Op, signs: Callable[[float], tuple[float, float]]) -> Sum | None:
        alpha = op.attr("alpha", op.args[2] if len(op.args) > 2 else 1)
        if not isinstance(alpha, int | float):
            return None
        return self._combination(op.args[:2], [Polynomial.constant(sign) for sign in signs(alpha)])

    def _product(self, left: Literal, right: Literal) -> Sum | None:
        for literal, weight in ((left, right), (right, left)):
            factor, form = self._factor(weight), self.of_operand(literal)
            if factor is not None and form is not None:
                return added((form, factor))
        return None

    def _quotient(self, dividend: Literal, divisor: Literal) -> Sum | None:
        factor, form = self._factor(divisor), self.of_operand(dividend)
        if factor is None or form is None or not factor.is_constant or not factor.terms:
            return None
        return added((form, Polynomial.constant(1.0 / factor({}))))

    def _factor(self, literal: Literal) -> Polynomial | None:
        """Return a factor that is the same for all elements and does not change the other operand's shape."""
        if isinstance(literal, Ref) and (data := self.tables.get(literal.name)) is not None:
            return Polynomial.constant(float(data.flat[0])) if data.size == 1 and data.ndim <= 4 else None
        form = self.of_operand(literal)
        return None if form is None or form.keys() - {""} else form.get("", Polynomial())
