"""Compare operations of traces that assume different numbers of tokens."""

from __future__ import annotations

import numpy as np
import pytest

from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program, Ref, Size, Table
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.length_fit import LengthFit, LengthTrace, Misfit
from diffc.compiler.tracing.open_signatures import Span

COUNTS = (5, 6, 9)


def fit(text: str, *tables: Table) -> LengthFit:
    """Compare programs, in whose text ``{n}`` is the number of tokens and ``{t}`` a table."""
    names = [table.name for table in tables] or [""] * len(COUNTS)
    traces = []
    for at, count in enumerate(COUNTS):
        lines = text.format(n=count, m=min(count, 7), t=names[at], at=at)
        program: Program = parse(f"program p() {{ n{at}: float32[20, 9] = noise() {lines} return v }}")
        program = Program(program.name, ops=program.ops, outputs=program.outputs, tables=tables)
        traces.append(LengthTrace({"L0": count}, program, ComponentCalls()))
    return LengthFit(traces, {"L0": Span(1, 9, 5)})


def test_sizes_and_integers_are_affine() -> None:
    comparison = fit("v: float32[{n}, 9] = aten.slice.Tensor(n{at}, 0, 0, {n})")
    [_, fitted] = comparison.fit()
    assert str(fitted.op) == "v: float32[L0, 9] = aten.slice.Tensor(n0, 0, 0, L0)"
    assert comparison.used == {"L0"}


def test_a_slice_of_all_is_written_as_one() -> None:
    comparison = fit("v: float32[20, {n}] = aten.slice.Tensor(n{at}, 1, 0, {n})")
    last = comparison.traces[-1].program.ops[-1]
    alias = type(last)("aten.alias.default", last.args[:1], results=last.results)
    program = comparison.traces[-1].program
    shorter = Program("p", ops=(program.ops[0], alias), outputs=program.outputs)
    traces = [*comparison.traces[:-1], LengthTrace({"L0": 9}, shorter, ComponentCalls())]
    [_, fitted] = LengthFit(traces, comparison.spans).fit()
    assert str(fitted.op) == "v: float32[20, L0] = aten.slice.Tensor(n0, 1, 0, L0)"


def test_tables_are_rows_of_the_longest() -> None:
    comparison = fit("v: float32[20, 9] = aten.index.Tensor(n{at}, {t})", *(Table.of(np.arange(n)) for n in COUNTS))
    [_, fitted] = comparison.fit()
    [rows] = fitted.before
    assert rows.args[1:] == (0, 0, Size.of("L0"))
    assert isinstance(rows.args[0], Ref)
    assert comparison.tables[rows.args[0].name].type.shape == (9,)


@pytest.mark.parametrize(
    "line",
    [
        "v: float32[{m}, 9] = aten.slice.Tensor(n{at}, 0, 0, {m})",
        "v: float32[20, 9] = aten.mul.Tensor(n{at}, {n}.5)",
        "v: float32[20, 9] = aten.op{n}.default(n{at})",
        "v: float32[{m}, {m}] = aten.op.default(n{at})",
    ],
)
def test_what_is_not_affine_is_refused(line: str) -> None:
    with pytest.raises(Misfit, match="the number of tokens of a text decides what is computed"):
        fit(line).fit()


def test_a_table_that_is_not_a_start_of_the_longest_is_refused() -> None:
    tables = [Table.of(np.arange(n)[::-1].copy()) for n in COUNTS]
    with pytest.raises(Misfit):
        fit("v: float32[20, 9] = aten.index.Tensor(n{at}, {t})", *tables).fit()
