"""One refusal for each rule; and what is legal passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffc.compiler.ir.parse import parse
from diffc.runtime.errors import VerifyError
from diffc.runtime.program.program import Guard, Op, Program, Type, Value
from diffc.runtime.program.verify import verify

LEGAL = """
program main(prompt: text[2], g: scalar = 7.5, image: float32[2, 3]) {
    guard g > 1.0
    graph unet(sample: float32[4, 3], t: int64[1], text: int64[2, 5]) -> (out: float32[4, 3])
    table t0: float32[3]
    ids: int64[2, 5], mask: int64[2, 5] = tokenize(prompt, tokenizer="tokenizer", length=5, pad=0)
    only: int64[2, 4] = tokenize(prompt, tokenizer="tokenizer", length=4, pad=0)
    n: float32[2, 3] = noise()
    both: float32[4, 3] = concat(n, n, axis=0)
    y: float32[4, 3] = unet(sample=both, t=[999], text=ids)
    u: float32[2, 3], c: float32[2, 3] = split(y, axis=0)
    x: float32[2, 3] = linear(n, u, c, t0, image; 0.5, 1.0 + -1.0*g, 1.0*g, 2.0, 1.0, 0.25)
    k: float32[] = linear(; 1.0*g)
    z: float32[2, 3] = aten.clamp.default(x, -1, 1)
    step(z; 1.0)
    step(x, u; 1.0, 2.0, 3.0)
    return z, ids
}
"""


def test_a_legal_program_is_returned() -> None:
    program = parse(LEGAL)
    assert verify(program) is program


def with_op(text: str) -> str:
    """Put one more operation at the end of the legal program."""
    return LEGAL.replace("    return", f"    {text}\n    return")


def instead(old: str, new: str) -> str:
    """Change the legal program in one place."""
    assert LEGAL.count(old) == 1
    return LEGAL.replace(old, new)


REFUSALS = {
    "a guard on no scalar": (instead("guard g >", "guard prompt >"), "a guard on prompt, which is no scalar input"),
    "a guard on nothing": (instead("guard g >", "guard h >"), "a guard on h, which is no scalar input"),
    "an unknown operator": (with_op("a: int64[1] = sort(x)"), "sort is no built-in and no graph of the program"),
    "no outputs": (instead("return z, ids", "return"), "the program returns nothing"),
    "an output that is not there": (instead("return z", "return w"), "the program returns w, which is not defined"),
    "two graphs of one name": (
        instead("    table", "    graph unet(a: float32[1]) -> (b: float32[1])\n    table"),
        "graph unet is declared twice",
    ),
    "two values of one name": (instead("table t0", "table g"), "g is defined twice"),
    "two ports of one name": (
        instead("t: int64[1],", "sample: int64[1],"),
        "port of graph unet sample is declared twice",
    ),
    "a port that is an input and an output": (instead("(out:", "(t:"), "port of graph unet t is declared twice"),
    "a graph like a built-in": (
        instead("    table", "    graph noise() -> (b: float32[1])\n    table"),
        "a graph takes the name of the built-in noise",
    ),
    "a port without a type": (instead("t: int64[1],", "t,"), "t has no tensor type"),
    "an output port of text": (instead("(out: float32[4, 3])", "(out: text[1])"), "out: text[1] has no tensor type"),
    "a table of text": (instead("t0: float32[3]", "t0: text[3]"), "t0: text[3] has no tensor type"),
    "an input of integers": (
        instead("prompt: text[2]", "prompt: int64[2]"),
        "input prompt is neither text, scalar, image nor tensor",
    ),
    "an infinite default": (instead("= 7.5", "= inf"), "input g defaults to inf"),
    "a read before the definition": (with_op("a: float32[1] = aten.abs.default(w)"), "w is read before it is defined"),
    "a scalar that is not there": (with_op("a: float32[1] = linear(; h)"), "h is read before it is defined"),
    "a second definition": (with_op("x: float32[1] = noise()"), "x is defined twice"),
    "a second definition of an input": (with_op("g: float32[1] = noise()"), "g is defined twice"),
    "a result without a type": (with_op("a = aten.abs.default(x)"), "a has no tensor type"),
    "a result of an unknown type": (with_op("a: text[1] = noise()"), "noise is sampled in float32"),
    "coefficients of a call": (with_op("a: float32[1] = noise(; 1.0)"), "noise takes no coefficients"),
    "an infinite coefficient": (with_op("a: float32[1] = linear(; inf)"), "a coefficient is inf"),
    "a coefficient that is not a number": (with_op("a: float32[1] = linear(; nan*g)"), "a coefficient is nan"),
    "a coefficient of a tensor": (
        with_op("a: float32[1] = linear(; x)"),
        "a coefficient reads no scalar",
    ),
    "a missing port": (with_op("a: float32[4, 3] = unet(sample=both, t=1)"), "unet is called by port: sample, t, text"),
    "a positional argument": (
        with_op("a: float32[4, 3] = unet(both, t=1, text=ids)"),
        "unet is called by port: sample, t, text",
    ),
    "a port given twice": (
        with_op("a: float32[4, 3] = unet(sample=both, t=1, text=ids, t=2)"),
        "keyword t is declared twice",
    ),
    "an argument of another shape": (
        with_op("a: float32[4, 3] = unet(sample=n, t=1, text=ids)"),
        "port sample takes float32[4, 3], not float32[2, 3]",
    ),
    "an argument of another element type": (
        with_op("a: float32[4, 3] = unet(sample=both, t=1, text=only)"),
        "port text takes int64[2, 5], not int64[2, 4]",
    ),
    "a port given a string": (
        with_op('a: float32[4, 3] = unet(sample=both, t="1", text=ids)'),
        "port t: a literal has another type or shape than its port",
    ),
    "a port given none": (
        with_op("a: float32[4, 3] = unet(sample=both, t=none, text=ids)"),
        "port t: a literal has another type or shape than its port",
    ),
    "results of other types": (
        with_op("a: float32[4, 2] = unet(sample=both, t=1, text=ids)"),
        "the results are not those of unet",
    ),
    "a result too many": (
        with_op("a: float32[4, 3], b: float32[4, 3] = unet(sample=both, t=1, text=ids)"),
        "the results are not those of unet",
    ),
    "a literal operand": (with_op("a: float32[1] = linear(1.0; 1.0)"), "linear takes values only"),
    "a nested operand": (with_op("a: float32[4, 3] = concat([n, n], axis=0)"), "concat takes values only"),
    "tokens of a tensor": (
        with_op('a: int64[2, 5] = tokenize(x, tokenizer="t", length=5, pad=0)'),
        "tokenize reads a text",
    ),
    "tokens of two texts": (
        with_op('a: int64[2, 5] = tokenize(prompt, prompt, tokenizer="t", length=5, pad=0)'),
        "tokenize has other arguments or results than it takes",
    ),
    "no tokenizer": (
        with_op("a: int64[2, 5] = tokenize(prompt, length=5, pad=0)"),
        "unknown tokenizer None",
    ),
    "no padding": (
        with_op('a: int64[2, 5] = tokenize(prompt, tokenizer="t", length=5)'),
        "pad is None",
    ),
    "ids of another length": (
        with_op('a: int64[2, 4] = tokenize(prompt, tokenizer="t", length=5, pad=0)'),
        "a is not 2 by 5",
    ),
    "three results of a tokenizer": (
        with_op('a: int64[2, 5], b: int64[2, 5], d: int64[2, 5] = tokenize(prompt, tokenizer="t", length=5, pad=0)'),
        "tokenize has other arguments or results than it takes",
    ),
    "noise from something": (
        with_op("a: float32[2] = noise(x)"),
        "noise follows the rows of texts and arrays of the request only",
    ),
    "noise in half precision": (with_op("a: float16[2] = noise()"), "noise is sampled in float32"),
    "noise for nobody": (with_op("noise()"), "noise has other arguments or results than it takes"),
    "a coefficient too few": (
        with_op("a: float32[2, 3] = linear(x, n; 1.0)"),
        "1 coefficients for 2 operands: linear takes one each",
    ),
    "two coefficients too many": (
        with_op("a: float32[2, 3] = linear(x; 1.0, 1.0, 1.0)"),
        "3 coefficients for 1 operands",
    ),
    "a sum of nothing": (
        with_op("a: float32[2, 3] = linear()"),
        "0 coefficients for 0 operands",
    ),
    "a sum of integers": (
        with_op("a: int64[2, 3] = linear(x; 1.0)"),
        "linear returns floating-point numbers",
    ),
    "two sums": (
        with_op("a: float32[2, 3], b: float32[2, 3] = linear(x; 1.0)"),
        "linear has other arguments or results than it takes",
    ),
    "a sum of other shapes": (
        with_op("a: float32[2, 3] = linear(x, y; 1.0, 1.0)"),
        "float32[4, 3] does not broadcast to float32[2, 3]",
    ),
    "a sum that is smaller than its operand": (
        with_op("a: float32[3] = linear(x; 1.0)"),
        "float32[2, 3] does not broadcast to float32[3]",
    ),
    "latents that are named": (
        with_op("a: float32[2, 3] = step(x; 1.0)"),
        "step has other arguments or results than it takes",
    ),
    "latents of nothing": (
        with_op("step(; 1.0)"),
        "step has other arguments or results than it takes",
    ),
    "latents without coefficients": (
        with_op("step(x)"),
        "0 coefficients for 1 operands",
    ),
    "a split of two": (
        with_op("a: float32[2, 3] = split(x, x, axis=0)"),
        "split has other arguments or results than it takes",
    ),
    "a split along no axis": (with_op("a: float32[2, 3] = split(x)"), "axis is None, of 2"),
    "a split along a far axis": (
        with_op("a: float32[2, 3] = split(x, axis=2)"),
        "axis is 2, of 2",
    ),
    "unequal parts": (
        with_op("a: float32[2, 2], b: float32[2, 1] = split(x, axis=1)"),
        "the parts are not equal parts",
    ),
    "no parts": (with_op("split(x, axis=1)"), "split has other arguments or results than it takes"),
    "other parts": (
        with_op("a: float32[1, 3], b: float32[2, 3] = split(x, axis=0)"),
        "the parts are not equal parts",
    ),
    "a concatenation of nothing": (
        with_op("a: float32[2] = concat(axis=0)"),
        "concat has other arguments or results than it takes",
    ),
    "a concatenation along no axis": (
        with_op("a: float32[4, 3] = concat(x, x)"),
        "axis is None, of 2",
    ),
    "a concatenation of other shapes": (
        with_op("a: float32[3, 3] = concat(x, t0, axis=0)"),
        "the operands of concat differ, not in the axis alone",
    ),
    "another concatenation": (
        with_op("a: float32[2, 6] = concat(x, x, axis=0)"),
        "the result is not the operands' concatenation",
    ),
}


@pytest.mark.parametrize("rule", REFUSALS)
def test_refuses(rule: str) -> None:
    text, what = REFUSALS[rule]
    with pytest.raises(VerifyError) as caught:
        verify(parse(text))
    assert caught.value.what.startswith(what)
    assert caught.value.where


def test_the_operation_is_named() -> None:
    with pytest.raises(VerifyError) as caught:
        verify(parse(with_op("a: float32[4, 2] = split(x, axis=5)")))
    assert caught.value.where == "line 17: a: float32[4, 2] = split(x, axis=5)"


@pytest.mark.parametrize("name", ["my-unet", "2d", "", "a b", "true", "none", "inf", "graph", "return", "é"])
@pytest.mark.parametrize("place", ["program", "input", "graph", "port", "table", "result"])
def test_refuses_names_that_cannot_be_read_back(name: str, place: str) -> None:
    program = parse(LEGAL)
    graph = program.graphs[0]
    port = replace(graph.inputs[0], name=name)
    broken: Program = {
        "program": replace(program, name=name),
        "input": replace(program, inputs=(replace(program.inputs[0], name=name),)),
        "graph": replace(program, graphs=(replace(graph, name=name),)),
        "port": replace(program, graphs=(replace(graph, inputs=(port,)),)),
        "table": replace(program, tables=(replace(program.tables[0], name=name),)),
        "result": replace(program, ops=(Op("noise", results=(Value(name, Type("float32", (1,))),)),)),
    }[place]
    with pytest.raises(VerifyError) as caught:
        verify(broken)
    assert caught.value.what == f"{name!r} is no name"


def test_refuses_types_that_no_text_has() -> None:
    for dtype in ("complex64", "string", ""):
        op = Op("aten.abs.default", results=(Value("a", Type(dtype, (1,))),))
        with pytest.raises(VerifyError, match="has no tensor type"):
            verify(replace(parse(LEGAL), ops=(op,)))


def test_a_comparison_that_is_none_is_refused() -> None:
    program = parse(LEGAL)
    with pytest.raises(VerifyError, match="a guard on g"):
        verify(replace(program, guards=(Guard("g", "<>", 1.0),)))
