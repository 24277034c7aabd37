"""Polynomials have one normal form, and compute as their values do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diffc.runtime.program.polynomial import Polynomial

G = Polynomial.of({("g",): 1.0})

FACTORS = st.integers(-8, 8).map(float)
MONOMIALS = st.lists(st.sampled_from(["g", "h"]), max_size=2).map(lambda names: tuple(sorted(names)))
POLYNOMIALS = st.dictionaries(MONOMIALS, FACTORS, max_size=4).map(Polynomial.of)


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
