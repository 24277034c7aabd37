"""Concatenations are followed through scaling, to parts that live as long as they do."""

from __future__ import annotations

import pytest

from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Polynomial
from diffc.passes.fuse_linear.concatenations import Concatenations

PROGRAM = parse(
    """program main() {
        a: float32[1, 2] = noise()
        b: float32[1, 2] = noise()
        i: int64[1, 2] = aten.argsort.default(a)
        both: float32[2, 2] = aten.cat.default([a, b])
        half: float32[2, 2] = aten.mul.Tensor(both, 0.5)
        mixed: float32[2, 2] = aten.cat.default([a, i])
        sum: float32[2, 2] = aten.add.Tensor(both, 1.0)
        return half, mixed, sum
    }"""
)


@pytest.fixture
def concats() -> Concatenations:
    return Concatenations(PROGRAM, {"a": 3, "b": 3, "both": 6, "half": 7}, lambda name: name)


def test_a_scaled_concatenation_is_one_of_scaled_parts(concats: Concatenations) -> None:
    both, half = PROGRAM.ops[3:5]
    assert concats.follow(both) and concats.follow(half)
    assert concats.parts == {"both": (("a", "b"), 0), "half": (("half.a", "half.b"), 0)}
    assert concats.forms.sums["half.a"] == {"a": Polynomial.constant(0.5)}


def test_parts_live_as_long_as_their_concatenation(concats: Concatenations) -> None:
    concats.follow(PROGRAM.ops[3])
    assert concats.last_use["a"] == concats.last_use["b"] == concats.last_use["both"] == 6


def test_other_operations_and_types_are_not_followed(concats: Concatenations) -> None:
    noise, mixed, total = PROGRAM.ops[0], PROGRAM.ops[5], PROGRAM.ops[6]
    concats.follow(PROGRAM.ops[3])
    assert not any(concats.follow(op) for op in (noise, mixed, total))
    assert list(concats.parts) == ["both"]
