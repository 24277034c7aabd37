"""Read programs, refuse each kind that is wrong, and check that the compiler's grammar is the runtime's."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffc.compiler.ir import parse as compiler_text
from diffc.runtime.errors import BundleError
from diffc.runtime.program.parse import read_program
from diffc.runtime.program.program import Guard, Polynomial, Program, Ref, Type, constant
from diffc.runtime.program.verify import verify

GOOD = """program p(prompt: text[2], g: scalar = 5.0, h: scalar) {
    guard g > 1.0
    graph f(ids: int64[2, 8], t: float32[], flags: bool[2], rows: int64[2, 2]) -> (a: float32[4, 3, 2, 2])
    table w: float32[3, 1, 1]
    ids: int64[2, 8], mask: int32[2, 8] = tokenize(prompt, tokenizer="words", length=8, pad=1, template="a \\"{}\\"")
    n: float32[2, 3, 2, 2] = noise()
    y: float32[4, 3, 2, 2] = f(ids=ids, t=-1, flags=[true, false], rows=[[1, 2], [3, 4]])
    u: float32[2, 3, 2, 2], v: float32[2, 3, 2, 2] = split(y, axis=0)
    x: float32[2, 3, 2, 2] = linear(n, u, w; 1.5, 0.2 + -0.2*g - g*h, g, 1e-05)
    step(x; 2.0)
    c: float32[2, 3, 4, 2] = concat(x, v, axis=-2)
    return c, mask
}
"""


def read(text: str) -> Program:
    program = read_program(text)
    verify(program, tokenizers=["words"])
    return program


def test_reads_every_rule_of_the_grammar() -> None:
    program = read(GOOD)
    assert program.name == "p" and program.outputs == ("c", "mask") and program.batch == 2
    assert program.scalars == {"g": 5.0, "h": None} and [text.name for text in program.texts] == ["prompt"]
    assert program.guards == (Guard("g", ">", 1.0),) and str(program.guards[0]) == "g > 1.0"
    assert program.types["mask"] == Type("int32", (2, 8)) and program.types["w"] == Type("float32", (3, 1, 1))
    tokenize, noise, call, split, linear, step, concat = program.ops
    assert tokenize.attrs["template"] == 'a "{}"' and tokenize.args == (Ref("prompt"),)
    assert [value.name for value in program.noises] == ["n"] and noise.source.startswith("line 6: n: float32")
    assert call.attrs["rows"] == ((1, 2), (3, 4)) and call.attrs["flags"] == (True, False) and call.attrs["t"] == -1
    assert split.attrs == {"axis": 0} and list(linear.reads()) == ["n", "u", "w"] and step.results == ()
    assert linear.coefficients[1] == Polynomial(((0.2, ()), (-0.2, ("g",)), (-1.0, ("g", "h"))))
    assert linear.coefficients[1]({"g": 5.0, "h": 2.0}) == pytest.approx(0.2 - 1.0 - 10.0)
    assert linear.coefficients[3]({}) == 1e-5 and concat.attrs == {"axis": -2}


def test_reads_what_the_compiler_prints(tiny: Any) -> None:
    for text in (GOOD, tiny.program(2)):
        printed = str(compiler_text.parse(text))
        mine, again = read(text), read(printed)
        assert (mine.name, mine.inputs, mine.guards, mine.graphs, mine.tables, mine.outputs) == (
            (again.name, again.inputs, again.guards, again.graphs, again.tables, again.outputs)
        )
        for left, right in zip(mine.ops, again.ops, strict=True):
            assert (left.operator, left.args, left.attrs, left.results) == (
                (right.operator, right.args, right.attrs, right.results)
            )
            scalars = {"g": 3.0, "h": 7.0, "guidance_scale": 3.0}
            assert [c(scalars) for c in left.coefficients] == pytest.approx([c(scalars) for c in right.coefficients])


@pytest.mark.parametrize("comparison", ["<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("value", [0.5, 1.0, 1.5])
def test_guards_compare(comparison: str, value: float) -> None:
    assert Guard("g", comparison, 1.0).holds({"g": value}) is eval(f"{value} {comparison} 1.0")
    assert not Guard("g", comparison, 1.0).holds({})


@pytest.mark.parametrize(
    ("literal", "type_", "expected"),
    [
        (3, Type("int64", ()), np.int64(3)),
        (3, Type("float16", (2,)), np.array([3, 3], np.float16)),
        (((1, 2.5),), Type("float32", (1, 2)), np.array([[1, 2.5]], np.float32)),
        (True, Type("bool", ()), np.bool_(True)),
        ((), Type("int64", (0,)), np.zeros(0, np.int64)),
        (float("inf"), Type("float32", ()), np.float32("inf")),
    ],
)
def test_literals_are_tensors(literal: Any, type_: Type, expected: Any) -> None:
    made = constant(literal, type_)
    assert made.dtype == expected.dtype and made.shape == type_.shape
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize(
    ("literal", "type_"),
    [
        (1.5, Type("int64", ())),
        (1, Type("bool", ())),
        (True, Type("int64", ())),
        (True, Type("float32", ())),
        ("a", Type("float32", ())),
        (None, Type("float32", ())),
        ((1, 2), Type("int64", (3,))),
        (((1, 2), (3,)), Type("int64", (2, 2))),
        ((1, (2,)), Type("int64", (2,))),
        (300, Type("uint8", ())),
        (10**390, Type("float64", ())),
        (2**63, Type("int64", ())),
    ],
)
def test_refuses_literals_of_another_type(literal: Any, type_: Type) -> None:
    with pytest.raises(BundleError, match="literal"):
        constant(literal, type_)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # What the reader refuses: the text is not in the grammar, or out of bounds.
        ("program p", "programme p", "expected 'program', found programme"),
        ("return c", "return @", "unexpected character '@'"),
        ("guard g >", "guard g +", "expected a comparison"),
        ("n: float32[2, 3, 2, 2] = noise()", "n = noise()", "expected ':'"),
        ("return c, mask\n}", "return c, mask\n", "expected '}', found the end"),
        ("return c, mask\n}", "return c, mask\n} }", "expected the end"),
        ("return c, mask\n}", "", "expected 'return', found the end"),
        ("table w: float32", "table w: bfloat16", "unknown type bfloat16"),
        ("table w: float32[3, 1, 1]", "table w: float32[3, -1, 1]", "a shape of integers"),
        ("table w: float32[3, 1, 1]", "table w: float32[3, 1.0, 1]", "a shape of integers"),
        ("table w: float32[3, 1, 1]", "table w: float32[65536, 65537]", "a shape of integers"),
        ("table w: float32[3, 1, 1]", "table w: float32[0, 4294967297]", "a shape of integers"),
        ("table w: float32[3, 1, 1]", f"table w: float32[{'1, ' * 8}1]", "a shape of integers"),
        ("pad=1", "pad=" + "9" * 401, "a number is too long"),
        ("g > 1.0", "g > " + "9" * 400, "a number is too large"),
        ("[[1, 2], [3, 4]]", "[" * 9 + "]" * 9, "lists nested at most 8 deep"),
        ("length=8", "length=8, length=8", "expected each keyword once"),
        ('"words"', '"\\q"', "a string as JSON writes it"),
        ("table w", "graph f(a: bool[]) -> (b: bool[])\n    table w", "one graph named f"),
        # What the verifier refuses: inputs and declarations.
        ("prompt: text[2]", "prompt: text[2, 2]", "input prompt is neither text, scalar, picture nor tensor"),
        ("prompt: text[2]", "prompt: int64[2]", "input prompt is neither text, scalar, picture nor tensor"),
        ("prompt: text[2]", "prompt: text[2] = 1", "input prompt is a text with a default"),
        ("h: scalar)", "h: scalar, g: scalar)", "g is defined twice"),
        ("guard g", "guard prompt", "reads no scalar input"),
        ("graph f(", "graph noise(", "graph noise has the name of a built-in"),
        ("t: float32[]", "ids: float32[]", "graph f has two inputs of one name"),
        ("t: float32[]", "t: scalar", "port t is no tensor"),
        ("table w: float32[3, 1, 1]", "table w: text[3]", "w is no tensor"),
        ("table w", "table g", "g is defined twice"),
        ("prompt: text[2]", "prompt: picture[2, 3]", "input prompt is no picture"),
        ("prompt: text[2]", "prompt: picture[2, 4, 8, 8]", "input prompt is no picture, grey or in colour"),
        ("h: scalar)", "h: scalar, e: float32[4, 3])", "e is not one for each of 2 pictures"),
        # Operations.
        ("= noise()", "= nose()", "unknown operator nose"),
        ("= noise()", "= noise(; 1.0)", "noise takes no coefficients"),
        ("= noise()", "= noise(g)", "noise has other arguments"),
        ("= noise()", "= noise(seed=1)", "noise has other arguments"),
        ("n: float32[2, 3, 2, 2] = noise", "n: float16[2, 3, 2, 2] = noise", "noise is drawn in float32"),
        ("n: float32[2, 3, 2, 2] = noise", "n: float32[1, 3, 2, 2] = noise", "n is not one for each of 2 pictures"),
        ("linear(n,", "linear(q,", "q is not a value known here"),
        ("linear(n,", "linear(c,", "c is not a value known here"),
        ("linear(n,", "linear(1,", "1 is not a value known here"),
        ("linear(n,", "linear(g,", "an operand is no tensor"),
        ("linear(n,", "linear(y,", "does not broadcast to"),
        ("linear(n, u, w;", "linear(n;", "4 coefficients for 1 operands"),
        ("linear(n, u, w;", "linear(n, u, w, w, w;", "4 coefficients for 5 operands"),
        ("linear(n, u, w;", "linear(n, u, w, axis=0;", "linear has other arguments"),
        ("- g*h", "- g*w", "a coefficient reads no scalar"),
        ("x: float32[2, 3, 2, 2] =", "x: int64[2, 3, 2, 2] =", "linear gives a floating-point number"),
        ("x: float32[2, 3, 2, 2] =", "u: float32[2, 3, 2, 2] =", "u is defined twice"),
        ("step(x; 2.0)", "step(; 2.0)", "step has other arguments"),
        ("step(x; 2.0)", "step(x)", "0 coefficients for 1 operands"),
        ("step(x; 2.0)", "step(x, y; 2.0, 1.0)", "the operands of step differ in shape"),
        ("split(y, axis=0)", "split(y, axis=4)", "axis is 4"),
        ("split(y, axis=0)", "split(y, axis=true)", "axis is True"),
        ("split(y, axis=0)", "split(y)", "axis is None"),
        ("split(y, axis=0)", "split(y, n, axis=0)", "split has other arguments"),
        ("split(y, axis=0)", "split(y, axis=1)", "the parts are not equal parts"),
        ("float32[4, 3, 2, 2]", "float32[5, 3, 2, 2]", "the parts are not equal parts"),
        ("split(y, axis=0)", "split(x, axis=0)", "x is not a value known here"),
        ("concat(x, v, axis=-2)", "concat(x, w, axis=-2)", "the parts differ in rank"),
        ("concat(x, v, axis=-2)", "concat(x, y, axis=-2)", "the parts do not make the whole"),
        ("concat(x, v, axis=-2)", "concat(x, v, axis=0)", "the parts do not make the whole"),
        ("concat(x, v, axis=-2)", "concat(axis=0)", "concat has other arguments"),
        ("f(ids=ids,", "f(ids,", "a graph is called by port"),
        ("f(ids=ids,", "f(", "the call misses the ports of f"),
        ("f(ids=ids,", "f(ids=mask,", r"port ids takes int64\[2, 8\], not int32\[2, 8\]"),
        ("f(ids=ids,", "f(ids=prompt,", "port ids takes"),
        ("f(ids: int64[2, 8],", "f(ids: int64[2, 4],", r"port ids takes int64\[2, 4\], not int64\[2, 8\]"),
        ("t=-1,", "t=none,", "a literal has another type"),
        ("y: float32[4, 3, 2, 2] = f", "y: float32[4, 3, 4, 1] = f", "the results are not those of f"),
        ("tokenize(prompt,", "tokenize(w,", "tokenize reads a text"),
        ("tokenize(prompt,", "tokenize(prompt, prompt,", "tokenize has other arguments"),
        ('tokenizer="words"', 'tokenizer="letters"', "unknown tokenizer 'letters'"),
        ("length=8", "length=0", "length is 0"),
        ("length=8", "length=9", "ids is not 2 by 9"),
        ("pad=1", "pad=-1", "pad is -1"),
        ("pad=1", "pad=1.0", "pad is 1.0"),
        ('"a \\"{}\\""', '"a"', "template is 'a'"),
        ("mask: int32[2, 8]", "mask: bool[2, 8]", "mask does not hold integers"),
        ("return c, mask", "return", "nothing is returned"),
        ("return c, mask", "return nothing", "nothing is not a value known here"),
        ("return c, mask", "return mask, c", r"the first output is int32\[2, 8\], no batch"),
        ("return c, mask", "return y", "prompt is not one for each of 4 pictures"),
    ],
)
def test_refuses(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(BundleError, match=message):
        read(GOOD.replace(old, new))


def test_names_the_line() -> None:
    with pytest.raises(BundleError) as raised:
        read(GOOD.replace("linear(n,", "linear(q,"))
    assert raised.value.where is not None and raised.value.where.startswith(
        "line 9: x: float32[2, 3, 2, 2] = linear(q, u"
    )


def test_lists_may_be_many_if_they_are_not_deep() -> None:
    rows = GOOD.replace("rows: int64[2, 2]", "rows: int64[20, 1]").replace("[[1, 2], [3, 4]]", f"[{'[1], ' * 19}[1]]")
    assert read(rows).ops[2].attrs["rows"] == ((1,),) * 20


def test_refuses_a_text_that_is_too_long() -> None:
    with pytest.raises(BundleError, match="characters are too many"):
        read(" " * (2**24 + 1))


PIECES = st.sampled_from(
    [*"()[]{}:;,=*+-<>\"'\\\n", "->", "==", "1", "-1", "1e999", "nan", "float32[2]", "g", "x", "\0", "é"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 12), st.lists(PIECES, max_size=3)), max_size=3))
def test_mutations_are_read_or_refused(edits: list[tuple[int, int, list[str]]]) -> None:
    text = GOOD
    for at, drop, pieces in edits:
        text = text[:at] + "".join(pieces) + text[at + drop :]
    with suppress(BundleError):
        read(text)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for each in (text, GOOD[:200] + text):
        with pytest.raises(BundleError):
            read(each)
