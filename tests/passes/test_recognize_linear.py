"""Chains that stack, move and weigh become the sum that they amount to; others stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program, Table, Type
from diffc.passes.recognize_linear import recognize_linear
from diffc.runtime.program.verify import verify
from tests.random_programs import difference, draws, numbers, rewritten_alike, straight_lines
from tests.tolerances import REWRITE, REWRITE_SINGLE

TABLES = {
    "w": np.array([[0.5, -2.0]], np.float32),
    "k": np.array([2.0, 4.0, 8.0], np.float32),
    "i": np.array([1, 0], np.int64),
}


def program(operations: str, tables: Mapping[str, np.ndarray] = TABLES) -> Program:
    """Make a program of two draws a and b, float32[2, 3], and these operations."""
    declared = "".join(f"table {name}: {data.dtype}{list(data.shape)}\n" for name, data in tables.items())
    head = f"program main(g: scalar = 2.0) {{ {declared} a: float32[2, 3] = noise() b: float32[2, 3] = noise()\n"
    made = parse(f"{head}{operations}\nreturn z }}")
    return replace(made, tables=tuple(replace(t, data=tables[t.name]) for t in made.tables))


def rewritten(operations: str) -> list[str]:
    """Rewrite, check that the numbers are the same, and give the operations after the draws."""
    before = verify(program(operations))
    after = verify(recognize_linear(before))
    noises = draws(before)
    assert difference(numbers(after, noises), numbers(before, noises)) < REWRITE_SINGLE
    return [str(op).replace(": float32[2, 3]", "") for op in after.ops[2:]]


# Rewrites


def test_an_einsum_over_stacked_values_is_a_sum() -> None:
    """UniPC writes Σ ρ[k]·D[k] so: stack, permute, flatten, multiply matrices, view."""
    assert rewritten("""
        s: float32[2, 2, 3] = aten.stack.default([a, b])
        f: float32[2, 6] = aten.view.default(s, [2, 6])
        m: float32[1, 6] = aten.mm.default(w, f)
        z: float32[2, 3] = aten.view.default(m, [2, 3])
    """) == ["z = linear(a, b; 0.5, -2.0)"]


def test_stacking_and_picking_is_the_value_itself() -> None:
    assert rewritten("""
        s: float32[2, 2, 3] = aten.stack.default([a, b], 1)
        z: float32[2, 3] = aten.select.int(s, 1, 1)
    """)[0].startswith("z = linear(a, b; ")


def test_weights_on_the_way_count() -> None:
    assert rewritten("""
        s: float32[2, 2, 3] = aten.stack.default([a, b])
        h: float32[2, 2, 3] = aten.mul.Tensor(s, 0.25)
        z: float32[2, 3] = aten.sum.dim_IntList(h, [0])
    """) == ["z = linear(a, b; 0.25, 0.25)"]


def test_a_third_is_written_as_precisely_as_it_was_measured() -> None:
    lines = rewritten("""
        s: float32[2, 2, 3] = aten.stack.default([a, b])
        h: float32[2, 2, 3] = aten.div.Tensor(s, 3.0)
        z: float32[2, 3] = aten.sum.dim_IntList(h, [0])
    """)
    first = parse(lines[0]).ops[0].coefficients[0]({})
    assert first == pytest.approx(1 / 3, rel=1e-7, abs=0)


# Leaves alone


@pytest.mark.parametrize(
    "operations",
    [
        "z: float32[2, 3] = aten.mul.Tensor(a, b)",
        "z: float32[2, 3] = aten.mul.Tensor(a, 2.0)",
        "t: float32[3, 2] = aten.transpose.int(a, 0, 1)\nz: float32[2, 3] = aten.reshape.default(t, [2, 3])",
        "h: float32[2, 3] = aten.mul.Tensor(a, k)\nz: float32[2, 3] = aten.clone.default(h)",
        "s: float32[2, 2, 3] = aten.stack.default([a, b])\n"
        "q: float32[2, 2, 3] = aten.mul.Tensor(s, s)\n"
        "z: float32[2, 3] = aten.select.int(q, 0, 0)",
        "s: float32[2, 2, 3] = aten.stack.default([a, b])\n"
        "q: float32[2, 2, 3] = aten.div.Tensor(1.0, s)\n"
        "z: float32[2, 3] = aten.select.int(q, 0, 0)",
        "s: float32[2, 2, 3] = aten.stack.default([a, b])\n"
        'q: float32[2, 2, 3] = aten.div.Tensor_mode(s, 0.5, rounding_mode="floor")\n'
        "z: float32[2, 3] = aten.sum.dim_IntList(q, [0])",
    ],
    ids=["a product", "one operation", "a permutation", "unequal weights", "a square", "an inverse", "a floor"],
)
def test_leaves_alone(operations: str) -> None:
    before = program(operations)
    assert recognize_linear(before).ops == before.live().ops


def test_few_elements_prove_nothing_by_chance() -> None:
    """Two weights explain any two numbers: one sample of two elements is no evidence."""
    text = """
        program main() {
            a: float32[2] = noise()
            b: float32[2] = noise()
            x: float32[1] = aten.slice.Tensor(a, 0, 1, 2)
            y: float32[1] = aten.slice.Tensor(b, 0, 0, 1)
            z: float32[2] = aten.cat.default([x, y])
            return z
        }
    """
    assert recognize_linear(parse(text)) == parse(text)


def test_single_numbers_are_recognized_too() -> None:
    text = """
        program main() {
            a: float32[1] = noise()
            b: float32[1] = noise()
            s: float32[2, 1] = aten.stack.default([a, b])
            z: float32[1] = aten.sum.dim_IntList(s, [0])
            return z
        }
    """
    assert [op.operator for op in recognize_linear(parse(text)).ops] == ["noise", "noise", "linear"]


def test_leaves_integers_alone() -> None:
    before = program("""
        s: int64[2, 2] = aten.stack.default([i, i])
        z: int64[2] = aten.select.int(s, 0, 0)
    """)
    assert recognize_linear(before).ops == before.ops


# Keeps the numbers


@settings(max_examples=60, deadline=None)
@given(straight_lines())
def test_random_programs_give_the_same_numbers(before: Program) -> None:
    after = verify(recognize_linear(before))
    assert rewritten_alike(before, after) < REWRITE


# Rejects: the pass has no options and refuses nothing. What it cannot prove it leaves.


def test_a_table_without_data_proves_nothing() -> None:
    before = program("""
        s: float32[2, 2, 3] = aten.stack.default([a, b])
        f: float32[2, 6] = aten.view.default(s, [2, 6])
        m: float32[1, 6] = aten.mm.default(w, f)
        z: float32[2, 3] = aten.view.default(m, [2, 3])
    """)
    parsed = replace(before, tables=(Table("w", Type("float32", (1, 2))),))
    assert recognize_linear(parsed).ops == before.ops
