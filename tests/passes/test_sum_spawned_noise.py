"""Noises of spawned seeds become one where they are added with numbers as coefficients."""

from __future__ import annotations

import pytest

from diffc.compiler.ir.parse import parse
from diffc.passes.sum_spawned_noise import sum_spawned_noise
from diffc.runtime.program.verify import verify

SPAWNED = """    a: float32[1, 2] = noise(pool=24, terms=[[1.0, 0]])
    b: float32[1, 2] = noise(pool=24, terms=[[2.0, 0, 1, 1], [0.5, 0]])
"""


def rewritten(operations: str) -> list[str]:
    """Return the operations of a program after the pass."""
    text = f"program p(g: scalar = 2.0) {{\n    x: float32[1, 2] = noise()\n{SPAWNED}{operations}\n    return y\n}}"
    return [str(op).replace(": float32[1, 2]", "") for op in verify(sum_spawned_noise(verify(parse(text)))).ops[1:]]


@pytest.mark.parametrize(
    ("operations", "after"),
    [
        (
            "y: float32[1, 2] = linear(x, a, b; 1.0, 0.5, -0.25, 3.0)",
            ["terms0 = noise(pool=24, terms=[[0.375, 0], [-0.5, 0, 1, 1]])", "y = linear(x, terms0; 1.0, 1.0, 3.0)"],
        ),
        (
            "s: float32[1, 2] = linear(a, b; 1.0, 1.0) y: float32[1, 2] = linear(x, s, a; 1.0, 0.5, 1.0)",
            ["terms1 = noise(pool=24, terms=[[1.75, 0], [1.0, 0, 1, 1]])", "y = linear(x, terms1; 1.0, 1.0)"],
        ),
        (
            "y: float32[1, 2] = linear(x, a; 1.0, g)",
            ["a = noise(pool=24, terms=[[1.0, 0]])", "y = linear(x, a; 1.0, 1.0*g)"],
        ),
        (
            "c: float32[1, 2] = noise(separate=true, pool=24, terms=[[1.0, 0]])"
            " y: float32[1, 2] = linear(a, c; 1.0, 1.0)",
            [
                "terms0 = noise(pool=24, terms=[[1.0, 0]])",
                "terms1 = noise(separate=true, pool=24, terms=[[1.0, 0]])",
                "y = linear(terms0, terms1; 1.0, 1.0)",
            ],
        ),
    ],
)
def test_noises_of_spawned_seeds_are_summed(operations: str, after: list[str]) -> None:
    assert rewritten(operations) == after
