"""Tables of one number become operations; others stay, and so do the numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program, Table
from diffc.passes.fill_uniform_tables import fill_uniform_tables
from diffc.runtime.program.verify import verify
from tests.random_programs import difference, draws, numbers


def padded(data: NDArray[Any]) -> Program:
    """Concatenate a draw and a table."""
    table = Table.of(data)
    program = parse(
        f"""program p() {{
        table {table.name}: {str(table.type)}
        a: float32[{len(data)}] = noise()
        y: float32[{2 * len(data)}] = concat(a, {table.name}, axis=0)
        return y
    }}"""
    )
    return verify(replace(program, tables=(table,)))


@pytest.mark.parametrize("number", [0.0, 1.0, -2.5])
def test_a_table_of_one_number_is_filled(number: float) -> None:
    before = padded(np.full(3, number, np.float32))
    after = verify(fill_uniform_tables(before))
    assert after.tables == ()
    assert str(after.ops[0]) == f"{before.tables[0].name}: float32[3] = linear(; {number})"
    assert difference(numbers(after, draws(before)), numbers(before, draws(before))) == 0.0


@pytest.mark.parametrize(
    "data", [np.array([1, 1, 2], np.float32), np.full(3, np.nan, np.float32), np.full(1, 5, np.float32)]
)
def test_other_tables_stay(data: NDArray[np.float32]) -> None:
    before = padded(data)
    assert fill_uniform_tables(before) == before
