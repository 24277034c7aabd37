"""Read programs, refuse each text that is none, and check that the reader undoes the printer."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffc.runtime.errors import ParseError, VerifyError
from diffc.runtime.program.parse import read_program
from diffc.runtime.program.polynomial import Polynomial
from diffc.runtime.program.program import Guard, Program, Ref, Type
from diffc.runtime.program.verify import Level, verify
from tests.format.program_cases import PROGRAM


def read(text: str) -> Program:
    return verify(read_program(text), Level.EXECUTABLE, tokenizers=["words"])


def test_reads_every_rule_of_the_grammar() -> None:
    program = read(PROGRAM)
    assert program.name == "p" and program.outputs == ("c", "mask") and program.batch == 2
    assert program.scalars == {"g": 5.0, "h": None} and [text.name for text in program.texts] == ["prompt"]
    assert program.guards == (Guard("g", ">", 1.0),) and str(program.guards[0]) == "g > 1.0"
    assert program.types()["mask"] == Type("int32", (2, 8)) and program.types()["w"] == Type("float32", (3, 1, 1))
    tokenize, noise, call, split, linear, step, concat = program.ops
    assert tokenize.attr("template") == 'a "{}"' and tokenize.args == (Ref("prompt"),)
    assert [value.name for value in program.noises] == ["n"] and noise.where.startswith("line 6: n: float32")
    assert call.attr("rows") == ((1, 2), (3, 4)) and call.attr("flags") == (True, False) and call.attr("t") == -1
    assert list(linear.operands()) == ["n", "u", "w"] and step.results == ()
    assert list(linear.reads()) == ["n", "u", "w", "g", "g", "h", "g"]
    assert linear.coefficients[1] == Polynomial.of({(): 0.2, ("g",): -0.2, ("g", "h"): -1.0})
    assert linear.coefficients[1]({"g": 5.0, "h": 2.0}) == pytest.approx(0.2 - 1.0 - 10.0)
    assert linear.coefficients[3]({}) == 1e-5 and (split.attr("axis"), concat.attr("axis")) == (0, 2)


def test_reads_what_it_prints(tiny: Any) -> None:
    for text in (PROGRAM, tiny.program(2)):
        program = read(text)
        assert read(str(program)) == program and str(read(str(program))) == str(program)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("program p", "programme p", "expected 'program', found programme"),
        ("return c", "return @", "unexpected character '@'"),
        ("guard g >", "guard g +", "expected a comparison"),
        ("n: float32[2, 3, 2, 2] = noise()", "n = noise()", "expected ':'"),
        ("return c, mask\n}", "return c, mask\n", "expected '}', found the end"),
        ("return c, mask\n}", "return c, mask\n} }", "expected the end"),
        ("return c, mask\n}", "", "expected 'return', found the end"),
        ("table w: float32", "table w: complex64", "unknown type complex64"),
        ("table w: float32[3, 1, 1]", "table w: float32[3, -1, 1]", "a shape of integers"),
        ("table w: float32[3, 1, 1]", "table w: float32[3, 1.0, 1]", "expected an integer"),
        ("table w: float32[3, 1, 1]", "table w: float32[65536, 65537]", "a shape of integers"),
        ("table w: float32[3, 1, 1]", "table w: float32[0, 4294967297]", "a shape of integers"),
        ("table w: float32[3, 1, 1]", f"table w: float32[{'1, ' * 8}1]", "a shape of integers"),
        ("pad=1", "pad=" + "9" * 401, "a number is too long"),
        ("g > 1.0", "g > " + "9" * 400, "a number is too large"),
        ("[[1, 2], [3, 4]]", "[" * 9 + "]" * 9, "lists nested at most 8 deep"),
        ('"words"', '"\\q"', "a string as JSON writes it"),
    ],
)
def test_refuses(old: str, new: str, message: str) -> None:
    assert old in PROGRAM
    with pytest.raises(ParseError, match=message) as refused:
        read(PROGRAM.replace(old, new))
    assert str(refused.value.where).startswith("line ")


def test_lists_may_be_many_if_they_are_not_deep() -> None:
    rows = PROGRAM.replace("rows: int64[2, 2]", "rows: int64[20, 1]").replace(
        "[[1, 2], [3, 4]]", f"[{'[1], ' * 19}[1]]"
    )
    assert read(rows).ops[2].attr("rows") == ((1,),) * 20


def test_refuses_a_text_that_is_too_long() -> None:
    with pytest.raises(ParseError, match="characters are too many"):
        read(" " * (2**24 + 1))


PIECES = st.sampled_from(
    [*"()[]{}:;,=*+-<>\"'\\\n", "->", "==", "1", "-1", "1e999", "nan", "float32[2]", "g", "x", "\0", "é"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(PROGRAM)), st.integers(0, 12), st.lists(PIECES, max_size=3)), max_size=3))
def test_mutations_are_read_or_refused(edits: list[tuple[int, int, list[str]]]) -> None:
    text = PROGRAM
    for at, drop, pieces in edits:
        text = text[:at] + "".join(pieces) + text[at + drop :]
    with suppress(ParseError, VerifyError):
        program = read(text)
        assert str(read(str(program))) == str(program)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for each in (text, PROGRAM[:200] + text):
        with pytest.raises(ParseError):
            read(each)
