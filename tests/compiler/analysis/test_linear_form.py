"""Sums of atoms have the values that NumPy computes, operation by operation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffc.compiler.analysis.linear_form import ONE, LinearForms, Sum, added, substituted
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Polynomial, Program
from tests.tolerances import REWRITE

VALUES = {"a": np.array([0.3, -1.2]), "b": np.array([2.5, 0.7]), "new": np.array([-0.4, 3.1]), "": 1.0}

A, B = VALUES["a"], VALUES["b"]
GUIDANCE = 3.5


def value(form: Sum) -> np.ndarray:
    """Compute a sum from the values of its atoms."""
    return sum((VALUES[atom] * factor({"g": GUIDANCE}) for atom, factor in form.items()), np.zeros(2))


def program_of(operation: str) -> Program:
    """Return a program of one operation on two samples of noise, a scalar, and two tables, of 4 and of 1 and 2."""
    program = parse(
        "program main(g: scalar = 1.0) { table four: float32[] table many: float32[2]"
        "a: float32[2] = noise() b: float32[2] = noise()"
        f"c: float32[2] = {operation} return c }}"
    )
    data = (np.float32(4.0).reshape(()), np.float32([1.0, 2.0]))
    return replace(program, tables=tuple(replace(t, data=d) for t, d in zip(program.tables, data, strict=True)))


def form_of(operation: str) -> Sum | None:
    """Return the sum of an operation."""
    program = program_of(operation)
    return LinearForms(program, opaque=()).of_operation(program.ops[-1])


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("linear(a, b; 2.0, g, -1.0)", 2 * A + GUIDANCE * B - 1),
        ("aten.add.Tensor(a, b)", A + B),
        ("aten.add.Tensor(a, b, alpha=3)", A + 3 * B),
        ("aten.sub.Tensor(a, b, alpha=3)", A - 3 * B),
        ("aten.rsub.Scalar(a, 5.0, 2)", 5 - 2 * A),
        ("aten.mul.Tensor(a, four)", 4 * A),
        ("aten.mul.Tensor(four, a)", 4 * A),
        ("aten.div.Tensor(a, four)", A / 4),
        ("aten.neg.default(a)", -A),
        ("aten.ones_like.default(a)", np.ones(2)),
    ],
)
def test_a_linear_operation_is_a_sum(operation: str, expected: np.ndarray) -> None:
    form = form_of(operation)
    assert form is not None
    np.testing.assert_allclose(value(form), expected, rtol=REWRITE)


@pytest.mark.parametrize(
    "operation", ["aten.mul.Tensor(a, b)", "aten.div.Tensor(1.0, a)", "aten.mul.Tensor(a, many)", "aten.sin.default(a)"]
)
def test_another_operation_is_not(operation: str) -> None:
    assert form_of(operation) is None


def test_what_cancels_is_gone() -> None:
    third = Polynomial.constant(1 / 3)
    terms = [({"a": ONE, "b": ONE}, third)] * 3
    assert added(*terms, ({"a": ONE}, Polynomial.constant(-1.0))) == {"b": Polynomial.constant(1.0)}


def test_a_sum_is_expressed_by_a_new_atom() -> None:
    """As new = 2a + 3b, what was a + b is 0.5 new - 0.5 b, and a sum without a stays as it is."""
    definition = {"a": Polynomial.constant(2.0), "b": Polynomial.constant(3.0)}
    changed = substituted({"s": {"a": ONE, "b": ONE}, "t": {"b": ONE}}, "a", "new", definition)
    assert changed is not None and changed.keys() == {"s"}
    assert {atom: factor({}) for atom, factor in changed["s"].items()} == {"new": 0.5, "b": -0.5}


def test_a_sum_does_not_grow_by_a_new_atom() -> None:
    definition = {"a": Polynomial.constant(2.0), "b": Polynomial.constant(3.0)}
    assert substituted({"s": {"a": ONE}}, "a", "new", definition) is None


def test_coefficients_do_not_grow_by_a_new_atom() -> None:
    """With new = 0.001a + b, a + b is 1000 new - 999 b: nearly all of it cancels."""
    definition = {"a": Polynomial.constant(0.001), "b": ONE}
    assert substituted({"s": {"a": ONE, "b": ONE}}, "a", "new", definition) is None
