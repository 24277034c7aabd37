"""Operations tell their operands, guards compare."""

from __future__ import annotations

import dataclasses

import pytest

from diffc.runtime.program.polynomial import Polynomial
from diffc.runtime.program.program import Guard, Op, Program, Ref, Type, Value

G = Polynomial.of({("g",): 1.0})


def test_a_program_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Program("main").name = "other"  # type: ignore[misc]


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
