"""Programs whose sizes the request decides are verified for all lengths; one refusal for each rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffc.compiler.ir.parse import parse
from diffc.runtime.errors import ParseError, VerifyError
from diffc.runtime.program.parse import read_program
from diffc.runtime.program.program import Length, Type
from diffc.runtime.program.size import Size
from diffc.runtime.program.verify import Level, verify

LEGAL = """
program main(prompt: text[1], negative: text[1]) {
    length L0 from 1 to 8
    length L1 from 2 to 8
    graph encoder(ids: int64[1, L0]) -> (hidden: float32[1, L0, 4])
    graph drop(hidden: float32[1, L0 + L1 + 3, 4], count: int64[]) -> (out: float32[1, L0 - 1, 4])
    graph denoiser(x: float32[1, 2], text: float32[1, L0, 4], scale: float32[1, L0]) -> (y: float32[1, 2])
    table start: float32[1, 3, 4]
    ids0: int64[1, L0], mask: int64[1, L0] = tokenize(prompt, tokenizer="t", length=8, pad=0, count="L0")
    ids1: int64[1, L1] = tokenize(negative, tokenizer="t", length=8, pad=0, count="L1")
    h0: float32[1, L0, 4] = encoder(ids=ids0)
    h1: float32[1, L1, 4] = encoder(ids=ids1)
    all: float32[1, L0 + L1 + 3, 4] = concat(h0, start, h1, axis=1)
    less: float32[1, L0 - 1, 4] = drop(hidden=all, count=L0)
    twice: float32[1, 2*L0, 4] = concat(h0, h0, axis=1)
    a: float32[1, L0, 4], b: float32[1, L0, 4] = split(twice, axis=1)
    mean: float32[1, L0, 4] = linear(a, b, L0; 0.5, 0.5, 0.0)
    n: float32[1, 2] = noise()
    y0: float32[1, 2] = denoiser(x=n, text=mean, scale=1)
    y1: float32[1, 2] = denoiser(x=y0, text=h1, scale=1)
    step(y1; 1.0)
    return y1
}
"""


def instead(old: str, new: str) -> str:
    assert LEGAL.count(old) == 1
    return LEGAL.replace(old, new)


def test_a_legal_program_reads_prints_and_verifies() -> None:
    program = verify(parse(LEGAL), Level.EXECUTABLE)
    assert program.lengths == (Length("L0", 1, 8), Length("L1", 2, 8))
    assert program.types()["all"] == Type("float32", (1, Size.of("L0") + Size.of("L1") + 3, 4))
    assert program.types()["L0"] == Type("int64")
    assert parse(str(program)) == program and str(read_program(str(program))) == str(program)


def test_open_sizes_are_refused_where_fixed_ones_are_needed() -> None:
    type_ = parse(LEGAL).types()["less"]
    assert type_.at({"L0": 5}).fixed == (1, 4, 4) and Type("int64", (2,)).fixed == (2,)
    with pytest.raises(VerifyError, match=r"each request decides a size of float32\[1, L0 - 1, 4\]"):
        _ = type_.fixed


def test_dead_code_keeps_the_lengths_of_what_is_live() -> None:
    program = parse(LEGAL)
    assert program.live().lengths == program.lengths and len(program.live().ops) == len(program.ops) - 2
    first = replace(program, outputs=("h0",), ops=tuple(op for op in program.ops if op.operator != "step")).live()
    assert first.lengths == (Length("L0", 1, 8),)
    assert [op.operator for op in first.ops] == ["tokenize", "encoder", "noise"]
    second = replace(program, outputs=("h1",), ops=tuple(op for op in program.ops if op.operator != "step")).live()
    assert second.lengths == program.lengths, "the graph's ports are declared with the first"
    counts = replace(program, outputs=("L1",), ops=program.ops[:3]).live()
    assert counts.lengths == (Length("L1", 2, 8),) and [op.operator for op in counts.ops] == ["tokenize"]


REFUSALS = {
    "a length without a declaration": (instead("start: float32[1, 3, 4]", "start: float32[1, L2, 4]"), "not declared"),
    "an open table": (instead("start: float32[1, 3, 4]", "start: float32[1, L0, 4]"), "not counted yet"),
    "bounds in the wrong order": (instead("from 1 to 8", "from 9 to 8"), "no length is L0 from 9 to 8"),
    "a length before it is counted": (instead(', count="L0")', ")"), "ids0 is not 1 by 8"),
    "a length that nothing counts": (instead("drop(hidden=all, count=L0)", "drop(hidden=all, count=L2)"), "L2 is read"),
    "a length that is counted twice": (instead('count="L1"', 'count="L0"'), "the length L0 is counted twice"),
    "a count of no length": (instead('count="L1"', 'count="L5"'), "the length 'L5' is not declared"),
    "a count of a number": (instead('count="L1"', "count=3"), "the length 3 is not declared"),
    "a length above the text's": (instead("from 2 to 8", "from 2 to 9"), "L1 is at most 8, the length"),
    "two lengths of one name": (instead("length L1", "length L0"), "length L0 is declared twice"),
    "a value with the name of a length": (
        instead("n: float32[1, 2] = noise()", "L1: float32[1, 2] = noise()"),
        "twice",
    ),
    "a size below zero": (instead("(out: float32[1, L0 - 1, 4])", "(out: float32[1, L0 - 2, 4])"), "no sensible size"),
    "an input of an open size": (instead("text[1], neg", "text[1], x: float32[L0], neg"), "input x has an open size"),
    "noise of an open size": (
        instead("n: float32[1, 2] = noise", "n: float32[1, L0] = noise"),
        "noise has an open size",
    ),
    "a step of an open size": (instead("step(y1;", "step(h1;"), "the latents have an open size"),
    "an open first output": (instead("return y1", "return h1"), "the first output is"),
    "a mask of another shape": (instead("mask: int64[1, L0]", "mask: int64[1, 8]"), "ids and mask differ"),
    "ids of another length": (instead("ids1: int64[1, L1]", "ids1: int64[1, L0]"), "ids1 is not 1 by 8 or L1"),
    "a result of another length": (
        instead("h1: float32[1, L1, 4] =", "h1: float32[1, L0, 4] ="),
        "results are not those",
    ),
    "an argument of another rank": (instead("encoder(ids=ids1)", "encoder(ids=h0)"), "port ids takes int64[1, L0]"),
    "an argument that does not fit": (instead("count=L0)", "count=ids0)"), "port count takes int64[], not"),
    "a length out of the graph's bounds": (
        instead("from 1 to 8", "from 3 to 8"),
        "encoder takes 3 to 8 for L0, not L1",
    ),
    "a sum that is another": (
        instead("all: float32[1, L0 + L1 + 3, 4]", "all: float32[1, L0 + 3, 4]"),
        "concatenation",
    ),
    "parts that are not equal": (instead("twice: float32[1, 2*L0, 4]", "twice: float32[1, 3*L0, 4]"), "concatenation"),
    "a part of another size": (instead("a: float32[1, L0, 4], b", "a: float32[1, L1, 4], b"), "not equal parts"),
    "terms that do not broadcast": (instead("linear(a, b,", "linear(a, h1,"), "does not broadcast to"),
    "a list for an open port": (instead("text=h1, scale=1", "text=h1, scale=[[1]]"), "another type or shape"),
}


@pytest.mark.parametrize(("text", "message"), REFUSALS.values(), ids=REFUSALS)
def test_each_rule_refuses(text: str, message: str) -> None:
    with pytest.raises(VerifyError) as refusal:
        verify(parse(text), Level.EXECUTABLE)
    assert message in refusal.value.what


@pytest.mark.parametrize("size", ["1.0*L0", "L0*2", "L0*L1", "2*3", "L0 L1", "L0 +", "-", "-1"])
def test_sizes_that_are_not_affine_with_integers_are_no_text(size: str) -> None:
    with pytest.raises(ParseError):
        read_program(instead("(out: float32[1, L0 - 1, 4])", f"(out: float32[1, {size}, 4])"))
