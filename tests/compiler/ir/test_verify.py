"""One refusal for each rule; and what is legal passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffc.compiler.errors import VerifyError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Op, Program, Type, Value
from diffc.compiler.ir.verify import verify

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
    "two values of one name": (instead("table t0", "table g"), "value g is declared twice"),
    "two ports of one name": (instead("t: int64[1],", "sample: int64[1],"), "port of unet sample is declared twice"),
    "a port that is an input and an output": (instead("(out:", "(t:"), "port of unet t is declared twice"),
    "a graph like a built-in": (
        instead("    table", "    graph noise() -> (b: float32[1])\n    table"),
        "a graph takes the name of the built-in noise",
    ),
    "a port without a type": (instead("t: int64[1],", "t,"), "t has no tensor type"),
    "an output port of text": (instead("(out: float32[4, 3])", "(out: text[1])"), "out has no tensor type"),
    "a table of text": (instead("t0: float32[3]", "t0: text[3]"), "t0 has no tensor type"),
    "an input of integers": (
        instead("prompt: text[2]", "prompt: int64[2]"),
        "input prompt is neither text, scalar, picture nor tensor",
    ),
    "an infinite default": (instead("= 7.5", "= inf"), "input g has the default inf"),
    "a read before the definition": (with_op("a: float32[1] = aten.abs.default(w)"), "w is read before it is defined"),
    "a scalar that is not there": (with_op("a: float32[1] = linear(; h)"), "h is read before it is defined"),
    "a second definition": (with_op("x: float32[1] = noise()"), "x is defined twice"),
    "a second definition of an input": (with_op("g: float32[1] = noise()"), "g is defined twice"),
    "a result without a type": (with_op("a = noise()"), "a has no tensor type"),
    "a result of an unknown type": (with_op("a: complex64[1] = noise()"), "a has no tensor type"),
    "coefficients of a call": (with_op("a: float32[1] = noise(; 1.0)"), "noise takes no coefficients"),
    "an infinite coefficient": (with_op("a: float32[1] = linear(; inf)"), "a coefficient is inf"),
    "a coefficient that is not a number": (with_op("a: float32[1] = linear(; nan*g)"), "a coefficient is nan"),
    "a coefficient of a tensor": (
        with_op("a: float32[1] = linear(; x)"),
        "a coefficient is made of something other than scalars",
    ),
    "a missing port": (with_op("a: float32[4, 3] = unet(sample=both, t=1)"), "unet takes sample, t, text"),
    "a positional argument": (with_op("a: float32[4, 3] = unet(both, t=1, text=ids)"), "unet takes sample, t, text"),
    "a port given twice": (
        with_op("a: float32[4, 3] = unet(sample=both, t=1, text=ids, t=2)"),
        "unet takes sample, t, text",
    ),
    "an argument of another shape": (
        with_op("a: float32[4, 3] = unet(sample=n, t=1, text=ids)"),
        "n does not have the type of unet's port sample",
    ),
    "an argument of another element type": (
        with_op("a: float32[4, 3] = unet(sample=both, t=1, text=only)"),
        "only does not have the type of unet's port text",
    ),
    "a port given a string": (
        with_op('a: float32[4, 3] = unet(sample=both, t="1", text=ids)'),
        "unet's port t is given no tensor",
    ),
    "a port given none": (
        with_op("a: float32[4, 3] = unet(sample=both, t=none, text=ids)"),
        "unet's port t is given no tensor",
    ),
    "results of other types": (
        with_op("a: float32[4, 2] = unet(sample=both, t=1, text=ids)"),
        "the results are not of the types that unet returns",
    ),
    "a result too many": (
        with_op("a: float32[4, 3], b: float32[4, 3] = unet(sample=both, t=1, text=ids)"),
        "the results are not of the types that unet returns",
    ),
    "a literal operand": (with_op("a: float32[1] = linear(1.0; 1.0)"), "linear takes values only"),
    "a nested operand": (with_op("a: float32[4, 3] = concat([n, n], axis=0)"), "concat takes values only"),
    "tokens of a tensor": (
        with_op('a: int64[2, 5] = tokenize(x, tokenizer="t", length=5, pad=0)'),
        "tokenize takes one text",
    ),
    "tokens of two texts": (
        with_op('a: int64[2, 5] = tokenize(prompt, prompt, tokenizer="t", length=5, pad=0)'),
        "tokenize takes one text",
    ),
    "no tokenizer": (
        with_op("a: int64[2, 5] = tokenize(prompt, length=5, pad=0)"),
        "tokenize needs a tokenizer and its padding",
    ),
    "no padding": (
        with_op('a: int64[2, 5] = tokenize(prompt, tokenizer="t", length=5)'),
        "tokenize needs a tokenizer and its padding",
    ),
    "ids of another length": (
        with_op('a: int64[2, 4] = tokenize(prompt, tokenizer="t", length=5, pad=0)'),
        "tokenize gives int64 ids, and a mask if asked, for each text and position",
    ),
    "three results of a tokenizer": (
        with_op('a: int64[2, 5], b: int64[2, 5], d: int64[2, 5] = tokenize(prompt, tokenizer="t", length=5, pad=0)'),
        "tokenize gives int64 ids, and a mask if asked, for each text and position",
    ),
    "noise from something": (with_op("a: float32[2] = noise(x)"), "noise takes nothing and gives one float32 tensor"),
    "noise in half precision": (with_op("a: float16[2] = noise()"), "noise takes nothing and gives one float32 tensor"),
    "noise for nobody": (with_op("noise()"), "noise takes nothing and gives one float32 tensor"),
    "a coefficient too few": (
        with_op("a: float32[2, 3] = linear(x, n; 1.0)"),
        "linear needs one coefficient for each operand, and one more for a constant term",
    ),
    "two coefficients too many": (
        with_op("a: float32[2, 3] = linear(x; 1.0, 1.0, 1.0)"),
        "linear needs one coefficient for each operand, and one more for a constant term",
    ),
    "a sum of nothing": (
        with_op("a: float32[2, 3] = linear()"),
        "linear needs one coefficient for each operand, and one more for a constant term",
    ),
    "a sum of integers": (
        with_op("a: int64[2, 3] = linear(x; 1.0)"),
        "linear gives one tensor of floating-point numbers",
    ),
    "two sums": (
        with_op("a: float32[2, 3], b: float32[2, 3] = linear(x; 1.0)"),
        "linear gives one tensor of floating-point numbers",
    ),
    "a sum of other shapes": (
        with_op("a: float32[2, 3] = linear(x, y; 1.0, 1.0)"),
        "linear cannot broadcast its operands to its result",
    ),
    "a sum that is smaller than its operand": (
        with_op("a: float32[3] = linear(x; 1.0)"),
        "linear cannot broadcast its operands to its result",
    ),
    "latents that are named": (
        with_op("a: float32[2, 3] = step(x; 1.0)"),
        "step marks the latents: one coefficient for each operand, no results",
    ),
    "latents of nothing": (
        with_op("step(; 1.0)"),
        "step marks the latents: one coefficient for each operand, no results",
    ),
    "latents without coefficients": (
        with_op("step(x)"),
        "step marks the latents: one coefficient for each operand, no results",
    ),
    "a split of two": (
        with_op("a: float32[2, 3] = split(x, x, axis=0)"),
        "split needs one operand and an axis of it",
    ),
    "a split along no axis": (with_op("a: float32[2, 3] = split(x)"), "split needs one operand and an axis of it"),
    "a split along a far axis": (
        with_op("a: float32[2, 3] = split(x, axis=2)"),
        "split needs one operand and an axis of it",
    ),
    "unequal parts": (
        with_op("a: float32[2, 2], b: float32[2, 1] = split(x, axis=1)"),
        "split needs equal parts",
    ),
    "no parts": (with_op("split(x, axis=1)"), "split needs equal parts"),
    "other parts": (
        with_op("a: float32[1, 3], b: float32[2, 3] = split(x, axis=0)"),
        "split does not give those parts",
    ),
    "a concatenation of nothing": (with_op("a: float32[2] = concat(axis=0)"), "concat needs operands and an axis"),
    "a concatenation along no axis": (
        with_op("a: float32[4, 3] = concat(x, x)"),
        "concat needs operands and an axis of them",
    ),
    "a concatenation of other shapes": (
        with_op("a: float32[3, 3] = concat(x, t0, axis=0)"),
        "concat needs operands that agree but on the axis",
    ),
    "another concatenation": (
        with_op("a: float32[2, 6] = concat(x, x, axis=0)"),
        "concat does not give the operands' concatenation",
    ),
}


@pytest.mark.parametrize("rule", REFUSALS)
def test_refuses(rule: str) -> None:
    text, what = REFUSALS[rule]
    with pytest.raises(VerifyError) as caught:
        verify(parse(text))
    assert caught.value.what.startswith(what)
    assert caught.value.where or "declared twice" in what


def test_the_operation_is_named() -> None:
    with pytest.raises(VerifyError) as caught:
        verify(parse(with_op("a: float32[4, 2] = split(x, axis=5)")))
    assert caught.value.where == "a: float32[4, 2] = split(x, axis=5)"


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


def test_a_comparison_that_is_none_is_refused() -> None:
    program = parse(LEGAL)
    with pytest.raises(VerifyError, match="a guard on g"):
        verify(replace(program, guards=(replace(program.guards[0], comparison="<>"),)))
