"""Polynomials compute, operations tell their operands, guards compare."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffc.runtime.program.program import Guard, Op, Polynomial, Program, Ref, Type, Value

G = Polynomial.of({("g",): 1.0})

FACTORS = st.integers(-8, 8).map(float)
MONOMIALS = st.lists(st.sampled_from(["g", "h"]), max_size=2).map(lambda names: tuple(sorted(names)))
POLYNOMIALS = st.dictionaries(MONOMIALS, FACTORS, max_size=4).map(Polynomial.of)


def test_a_program_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Program("main").name = "other"  # type: ignore[misc]


def test_a_polynomial_has_one_normal_form() -> None:
    one = Polynomial.of({("g", "h"): 2.0, (): 1.0, ("h",): 0.0})
    assert one == Polynomial.of({(): 1.0, ("g", "h"): 2.0})
    assert one.terms == (((), 1.0), (("g", "h"), 2.0))
    assert Polynomial.constant(0) == Polynomial()


def test_polynomials_add_and_multiply() -> None:
    one_less = G + Polynomial.constant(-1)
    assert (one_less * one_less).terms == (((), 1.0), (("g",), -2.0), (("g", "g"), 1.0))
    assert one_less + Polynomial.constant(1) == G


@given(POLYNOMIALS, POLYNOMIALS)
def test_evaluation_is_a_homomorphism(one: Polynomial, other: Polynomial) -> None:
    at = {"g": 3.0, "h": -2.0}
    assert (one + other)(at) == one(at) + other(at)
    assert (one * other)(at) == one(at) * other(at)
    assert one * other == other * one


def test_constants_are_told_from_scalars() -> None:
    assert Polynomial().is_constant and Polynomial.constant(3).is_constant
    assert not G.is_constant
    assert (G + Polynomial.constant(-2)).size == 3.0


def test_an_operation_says_what_it_reads_in_order() -> None:
    op = Op("f", (Ref("a"), (Ref("b"), 1, "c")), (("port", Ref("d")), ("other", (Ref("a"),))), (G,))
    assert list(op.reads()) == ["a", "b", "d", "a", "g"] and list(op.operands()) == ["a", "b", "d", "a"]


def test_renaming_reaches_nested_arguments_and_leaves_results() -> None:
    op = Op("f", ((Ref("a"), Ref("b")),), (("port", Ref("a")),), results=(Value("a"),))
    assert op.renamed({"a": "x"}) == Op("f", ((Ref("x"), Ref("b")),), (("port", Ref("x")),), results=(Value("a"),))


def test_attributes_are_looked_up() -> None:
    op = Op("split", (), (("axis", 1),))
    assert (op.attr("axis"), op.attr("length"), op.attr("length", 7)) == (1, None, 7)


def test_floats_are_told_from_integers() -> None:
    assert Type("bfloat16", (1,)).is_float
    assert not Type("int64", (1,)).is_float and not Type("text", (1,)).is_float


@pytest.mark.parametrize("comparison", ["<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("value", [0.5, 1.0, 1.5])
def test_guards_compare(comparison: str, value: float) -> None:
    assert Guard("g", comparison, 1.0).holds({"g": value}) is eval(f"{value} {comparison} 1.0")
    assert not Guard("g", comparison, 1.0).holds({})
