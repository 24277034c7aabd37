"""What nobody reads is dropped; graphs are looked up."""

from __future__ import annotations

from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Type

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
