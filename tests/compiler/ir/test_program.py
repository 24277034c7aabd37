"""Programs are frozen; polynomials compute; what nobody reads is dropped."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Op, Polynomial, Program, Ref, Type, Value

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
    assert list(op.reads()) == ["a", "b", "d", "a", "g"]


def test_renaming_reaches_nested_arguments_and_leaves_results() -> None:
    op = Op("f", ((Ref("a"), Ref("b")),), (("port", Ref("a")),), results=(Value("a"),))
    assert op.renamed({"a": "x"}) == Op("f", ((Ref("x"), Ref("b")),), (("port", Ref("x")),), results=(Value("a"),))


def test_attributes_are_looked_up() -> None:
    op = Op("split", (), (("axis", 1),))
    assert (op.attr("axis"), op.attr("length"), op.attr("length", 7)) == (1, None, 7)


BEFORE = """
program main(prompt: text[1], other: text[1], g: scalar = 2.0, h: scalar = 1.0, k: scalar = 1.0) {
    guard k > 0.0
    graph unet(sample: float32[2]) -> (out: float32[2])
    graph unused(sample: float32[2]) -> (out: float32[2])
    table t1: float32[2]
    table t2: float32[2]
    ids: int64[1, 4], mask: int64[1, 4] = tokenize(prompt, tokenizer="tokenizer", length=4, pad=0)
    ids2: int64[1, 4] = tokenize(other, tokenizer="tokenizer", length=4, pad=0)
    n: float32[2] = noise()
    unread: float32[2] = noise()
    a: float32[2] = linear(n, t1; 1.0*g, 1.0)
    b: float32[2] = linear(n, t2; 1.0*h, 1.0)
    y: float32[2] = unet(sample=a)
    z: float32[2] = unused(sample=b)
    step(y; 2.0)
    return y, ids
}
"""

AFTER = """
program main(prompt: text[1], g: scalar = 2.0, k: scalar = 1.0) {
    guard k > 0.0
    graph unet(sample: float32[2]) -> (out: float32[2])
    table t1: float32[2]
    ids: int64[1, 4] = tokenize(prompt, tokenizer="tokenizer", length=4, pad=0)
    n: float32[2] = noise()
    unread: float32[2] = noise()
    a: float32[2] = linear(n, t1; 1.0*g, 1.0)
    y: float32[2] = unet(sample=a)
    step(y; 2.0)
    return y, ids
}
"""


def test_what_nobody_reads_is_dropped_but_for_draws_and_steps() -> None:
    assert parse(BEFORE).live() == parse(AFTER)


def test_a_mask_that_is_read_stays() -> None:
    program = parse(BEFORE.replace("return y, ids", "return y, mask"))
    assert len(program.live().ops[0].results) == 2


def test_types_and_graphs_are_looked_up() -> None:
    program = parse(BEFORE)
    assert program.types()["prompt"] == Type("text", (1,))
    assert program.types()["t1"] == program.types()["y"] == Type("float32", (2,))
    assert program.graph("unet") == program.graphs[0]
    assert program.graph("noise") is None


def test_floats_are_told_from_integers() -> None:
    assert Type("bfloat16", (1,)).is_float
    assert not Type("int64", (1,)).is_float and not Type("text", (1,)).is_float
