"""Steps outside the interval keep the branch that a guidance scale of 1 leaves; the others stay as they are."""

from __future__ import annotations

import math
import re

import pytest

from diffc.compiler.errors import PassError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Graph, Program
from diffc.passes.guidance_interval import guidance_interval
from diffc.runtime.program.verify import verify

PICTURE = ": float32[1, 4]"
HALF = (
    "graph half(sample: float32[1, 4], t: int64[1], h: float32[1, 3], mode: float32[2]) -> (out: float32[1, 4])\n"
    "graph other(sample: float32[1, 4]) -> (out: float32[1, 4])"
)
"""One is half of the denoiser below; the other is no part of anything."""


def program(operations: str) -> Program:
    """Declare what the tests call; a value without a type is float32[1, 4]."""
    typed = re.sub(
        r"^( *\w+(, \w+)?) =", lambda m: f"{m[1].replace(',', f'{PICTURE},')}{PICTURE} =", operations, flags=re.M
    )
    head = """
        program main(g: scalar = 4.0) {
        graph unet(sample: float32[2, 4], t: int64[2], h: float32[2, 3], mode: float32[2]) -> (out: float32[2, 4])
        graph solo(sample: float32[1, 4], h: float32[1, 3]) -> (out: float32[1, 4])
        graph last(z: float32[1, 4]) -> (out: float32[1, 4])
        table k: float32[2, 3]
        table m: float32[2]
        table p: float32[1, 3]
        table q: float32[1, 3]
    """
    return verify(parse(head + typed + "return y }"))


def halves() -> dict[str, Graph]:
    """Name the half of the denoiser."""
    return {"unet": parse(f"program main(x: text[1]) {{ {HALF} return x }}").graphs[0]}


def limited(operations: str, *interval: float) -> list[str]:
    """Give the operations of the rewritten program, without the types of float32[1, 4]."""
    start, stop = interval
    after = verify(guidance_interval(program(operations), interval=(start, stop), parts=halves()))
    lines = [line.strip().replace(PICTURE, "") for line in str(after).splitlines()]
    return [line for line in lines if not line.startswith(("program", "graph", "table", "return", "}"))]


BATCHED = """
    n = noise()
    a: float32[2, 4] = concat(n, n, axis=0)
    y0: float32[2, 4] = unet(sample=a, t=[9, 9], h=k, mode=m)
    u0, c0 = split(y0, axis=0)
    x0 = linear(n, u0, c0; 2.0, 1.0 + -1.0*g, g)
    b: float32[2, 4] = concat(x0, x0, axis=0)
    step(x0; 1.0)
    y1: float32[2, 4] = unet(sample=b, t=[5, 6], h=k, mode=m)
    u1, c1 = split(y1, axis=0)
    x1 = linear(x0, u1, c1, u0, c0; 2.0, 3.0 + -3.0*g, 3.0*g, 1.0 + -1.0*g, g)
    step(x1, u1, c1; 1.0, 1.0 + -1.0*g, g)
    y = last(z=x1)
"""


# Rewrites


def test_a_step_before_the_interval_takes_half_the_batch_and_its_history_the_scale_of_one() -> None:
    assert limited(BATCHED, 0.5, 1.0) == [
        "n = noise()",
        "k_part_0: float32[1, 3], k_part_1: float32[1, 3] = split(k, axis=0)",
        "half_1 = half(sample=n, t=[9], h=k_part_1, mode=m)",
        "x0 = linear(n, half_1; 2.0, 1.0)",
        "b: float32[2, 4] = concat(x0, x0, axis=0)",
        "step(x0; 1.0)",
        "y1: float32[2, 4] = unet(sample=b, t=[5, 6], h=k, mode=m)",
        "u1, c1 = split(y1, axis=0)",
        "x1 = linear(x0, u1, c1, half_1; 2.0, 3.0 + -3.0*g, 3.0*g, 1.0)",
        "step(x1, u1, c1; 1.0, 1.0 + -1.0*g, 1.0*g)",
        "y = last(z=x1)",
    ]


def test_a_step_after_the_interval_keeps_the_guidance_of_its_history() -> None:
    after = limited(BATCHED, 0.0, 0.5)
    assert "y0: float32[2, 4] = unet(sample=a, t=[9, 9], h=k, mode=m)" in after
    assert "half_1 = half(sample=x0, t=[6], h=k_part_1, mode=m)" in after, "the second half, and its timestep"
    assert "x1 = linear(x0, half_1, u0, c0; 2.0, 3.0, 1.0 + -1.0*g, 1.0*g)" in after
    assert "step(x1, half_1; 1.0, 1.0)" in after


def test_a_branch_that_is_a_call_of_its_own_goes_and_what_scales_it_too() -> None:
    assert limited(
        """
        n = noise()
        u = solo(sample=n, h=p)
        c = solo(sample=n, h=q)
        v = aten.tanh.default(u)
        w = linear(v; 2.0)
        x = linear(n, w, c; 1.0, 0.5 + -0.5*g, g)
        step(x; 1.0)
        d = solo(sample=x, h=p)
        e = solo(sample=x, h=q)
        z = linear(d, e; 1.0 + -1.0*g, g)
        step(z; 1.0)
        y = last(z=z)
        """,
        0.5,
        1.0,
    )[:4] == ["n = noise()", "c = solo(sample=n, h=q)", "x = linear(n, c; 1.0, 1.0)", "step(x; 1.0)"]


def test_what_rounding_leaves_of_a_coefficient_goes() -> None:
    slightly = BATCHED.replace("1.0 + -1.0*g", "0.3 + -0.30000000000000004*g", 1)
    assert "x0 = linear(n, half_1; 2.0, 1.0)" in limited(slightly, 0.5, 1.0)


# Rejects


def refusal(operations: str, *interval: float) -> PassError:
    with pytest.raises(PassError) as refused:
        limited(operations, *interval)
    assert refused.value.fix
    return refused.value


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.5, 0.5), (0.8, 0.2), (-1.0, 0.5), (0.5, 1.5), (math.nan, 0.5)])
def test_an_interval_that_changes_nothing_or_everything(interval: tuple[float, float]) -> None:
    assert "of 2 steps are inside" in str(refusal(BATCHED, *interval))


def test_a_program_without_steps() -> None:
    assert "marks no steps" in str(refusal("n = noise()\ny = last(z=n)", 0.5, 1.0))


def test_guidance_that_needs_both_branches_at_every_scale() -> None:
    both = BATCHED.replace("2.0, 1.0 + -1.0*g", "2.0, 2.0 + -1.0*g", 1)
    assert "half(" in str(refusal(both, 0.5, 1.0).where)


def test_a_batch_that_is_read_as_a_whole() -> None:
    whole = BATCHED.replace(
        "x0 = linear",
        "s: float32[2, 4] = aten.tanh.default(y0)\nr: float32[1, 4] = aten.slice.Tensor(s, 0, 0, 1)\nx0 = linear",
        1,
    )
    whole = whole.replace("linear(n, u0, c0; 2.0,", "linear(r, u0, c0; 2.0,")
    assert "unet(" in str(refusal(whole, 0.5, 1.0).where)
