"""What is not linear becomes a small graph; equal computations share one, different ones never do."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from diffc.compiler.errors import PassError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program
from diffc.passes.fuse_linear import fuse_linear
from diffc.passes.outline import outline
from diffc.runtime.program.verify import verify
from tests.random_programs import difference, draws, numbers, rewritten_alike, straight_lines
from tests.tolerances import REWRITE


def rewritten(operations: str, table: np.ndarray | None = None) -> list[str]:
    """Outline a program of float32[4] values, check its numbers, and give its lines with digests left out."""
    typed = re.sub(r"^( *\w+) =", r"\1: float32[4] =", operations, flags=re.M)
    head = "" if table is None else f"table t: {table.dtype}{list(table.shape)}\n"
    before = verify(parse(f"program main(g: scalar = 2.0) {{ {head}{typed}}}"))
    before = replace(before, tables=tuple(replace(t, data=table) for t in before.tables))
    after = verify(outline(before))
    noises = draws(before)
    assert difference(numbers(after, noises), numbers(before, noises)) == 0.0
    lines = re.sub(r"_[0-9a-f]{8}\b", "", str(after)).replace(": float32[4]", "").splitlines()[1:-1]
    return [line.strip() for line in lines]


# Rewrites


def test_a_run_of_operations_with_the_sums_inside_it_is_one_graph() -> None:
    assert rewritten("""
        n = noise()
        m = noise()
        a = aten.abs.default(n)
        b = linear(a; 0.5, -0.25)
        c = aten.maximum.default(b, m)
        d = linear(c; 2.0)
        return d
    """) == [
        "graph abs_maximum(in0, in1) -> (out)",
        "n = noise()",
        "m = noise()",
        "c = abs_maximum(in0=n, in1=m)",
        "d = linear(c; 2.0)",
        "return d",
    ]


def test_sums_with_numbers_of_the_request_stay_outside() -> None:
    assert rewritten("""
        n = noise()
        a = aten.abs.default(n)
        b = linear(a; 0.5*g)
        c = aten.exp.default(b)
        return c
    """) == [
        "graph abs(in) -> (out)",
        "graph exp(in) -> (out)",
        "n = noise()",
        "a = abs(in=n)",
        "b = linear(a; 0.5*g)",
        "c = exp(in=b)",
        "return c",
    ]


def test_what_is_read_later_is_returned() -> None:
    assert rewritten("""
        n = noise()
        a = aten.abs.default(n)
        b = aten.exp.default(a)
        return b, a
    """) == [
        "graph abs_exp(in) -> (out0, out1)",
        "n = noise()",
        "a, b = abs_exp(in=n)",
        "return b, a",
    ]


def test_tables_are_ports() -> None:
    mask = np.array([True, False, True, False])
    lines = rewritten("n = noise()\na = aten.where.self(t, n, 0.0)\nreturn a", mask)
    assert lines[0] == "graph where(in0: bool[4], in1) -> (out)"
    assert lines[3] == "a = where(in0=t, in1=n)"


def test_equal_computations_share_a_graph() -> None:
    lines = rewritten("""
        n = noise()
        a = aten.clamp.default(n, -1, 1)
        m = noise()
        b = aten.clamp.default(m, -1, 1)
        k = noise()
        c = aten.clamp.default(k, -1, 2)
        return a, b, c
    """)
    assert len([line for line in lines if line.startswith("graph")]) == 2


def test_sums_that_read_from_outside_belong_to_the_run_around_them() -> None:
    assert rewritten("""
        n = noise()
        m = noise()
        a = aten.abs.default(n)
        b = linear(a, m; 0.5, 2.0, 1.0)
        c = aten.exp.default(b)
        d = linear(c, m; 1.0, -1.0)
        return d
    """) == [
        "graph abs_exp(in0, in1) -> (out)",
        "n = noise()",
        "m = noise()",
        "c = abs_exp(in0=n, in1=m)",
        "d = linear(c, m; 1.0, -1.0)",
        "return d",
    ]


def test_computations_that_differ_in_factors_share_a_graph_that_reads_them() -> None:
    lines = rewritten("""
        n = noise()
        a = aten.abs.default(n)
        b = linear(a, n; 0.1, 2.0, -1.0)
        c = aten.exp.default(b)
        m = noise()
        d = aten.abs.default(m)
        e = linear(d, m; 0.3, 4.0, 1.0)
        f = aten.exp.default(e)
        return c, f
    """)
    named = [re.sub(r"\bt[0-9a-f]{10}\b", "t", line) for line in lines]
    assert named == [
        "graph abs_exp(in, factors: float64[3]) -> (out)",
        "table t: float64[3]",
        "table t: float64[3]",
        "n = noise()",
        "c = abs_exp(in=n, factors=t)",
        "m = noise()",
        "f = abs_exp(in=m, factors=t)",
        "return c, f",
    ]


def test_the_same_factors_stay_in_the_graph() -> None:
    run = "{0} = noise() {0}a = aten.abs.default({0}) {0}b = linear({0}a; 0.1) {0}c = aten.exp.default({0}b)"
    operations = "\n".join(run.format(name).replace(") ", ")\n") for name in "nm")
    lines = rewritten(f"{operations}\nreturn nc, mc")
    assert lines[0] == "graph abs_exp(in) -> (out)"
    assert [line for line in lines if line.startswith("table")] == []


def test_the_same_operations_with_other_results_are_another_graph() -> None:
    lines = rewritten("""
        n = noise()
        a = aten.abs.default(n)
        b = aten.exp.default(a)
        m = noise()
        c = aten.abs.default(m)
        d = aten.exp.default(c)
        return b, a, d
    """)
    assert len([line for line in lines if line.startswith("graph")]) == 2


def test_the_same_operations_on_other_types_are_another_graph() -> None:
    lines = rewritten("""
        n: float32[4, 1] = noise()
        m: float32[1, 4] = noise()
        a: float32[4, 4] = aten.maximum.default(n, m)
        k = noise()
        n2: float32[1, 4] = noise()
        m2: float32[4, 1] = noise()
        b: float32[4, 4] = aten.maximum.default(n2, m2)
        return a, k, b
    """)
    assert len([line for line in lines if line.startswith("graph")]) == 2


def test_a_graph_belongs_to_no_component() -> None:
    program = parse("n: float32[4] = noise()\na: float32[4] = aten.abs.default(n)")
    assert [graph.component for graph in outline(program).graphs] == ["arithmetic"]


# Leaves alone


def test_leaves_a_normal_form_alone() -> None:
    text = """
        program main() {
            graph unet(sample: float32[4]) -> (out: float32[4])
            n: float32[4] = noise()
            x0: float32[4] = linear(n; 2.0)
            y: float32[4] = unet(sample=x0)
            step(y; 1.0)
            return y
        }
    """
    assert outline(parse(text)) == parse(text)


# Keeps the numbers


@settings(max_examples=20, deadline=None)
@given(straight_lines())
def test_random_programs_give_the_same_numbers(before: Program) -> None:
    after = verify(outline(verify(fuse_linear(before))))
    assert rewritten_alike(before, after) < REWRITE
    assert not any(op.operator.startswith("aten.") for op in after.ops)


# Rejects


def test_refuses_arithmetic_on_what_is_no_tensor() -> None:
    with pytest.raises(PassError) as caught:
        outline(parse("program main(g: scalar = 2.0) { a: float32[] = aten.sin.default(g) return a }"))
    assert caught.value.what == "outline: in has no tensor type"
    assert caught.value.where == "a: float32[] = aten.sin.default(g)"


def test_refuses_arithmetic_on_what_has_no_type() -> None:
    with pytest.raises(PassError, match="outline: in has no tensor type"):
        outline(parse("n = noise()\na = aten.abs.default(n)"))


def test_graphs_of_open_sizes_are_compared_at_the_ends_of_their_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    program = parse(
        'program p(prompt: text[1]) { length L0 from 1 to 9 ids: int64[1, L0] = tokenize(prompt, tokenizer="t",'
        ' length=9, pad=0, count="L0") y: int64[1] = aten.sum.dim_IntList(ids, [1]) return y }'
    )
    compared = list[object]()
    monkeypatch.setattr(sys.modules["diffc.passes.outline"], "check_ends", lambda *about: compared.append(about[-1]))
    outline(program)
    assert compared == [({"L0": 1}, {"L0": 9})]
