"""Replace a table whose elements are all equal by an operation, which takes no space in a bundle.

Source: diffc. A pipeline pads so: with zeros for the embeddings of a text encoder that a checkpoint leaves out.

Before:
    program p() {
        table t: float32[1, 4]
        a: float32[1, 4] = noise()
        y: float32[2, 4] = concat(a, t, axis=0)
        return y
    }

After:
    program p() {
        t: float32[1, 4] = linear(; 0.0)
        a: float32[1, 4] = noise()
        y: float32[2, 4] = concat(a, t, axis=0)
        return y
    }
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diffc.compiler.ir.program import Op, Polynomial, Program, Table, Value


def fill_uniform_tables(program: Program) -> Program:
    """Replace each floating-point table of equal elements by a ``linear`` of that constant."""
    filled = {table.name: table for table in program.tables if _is_uniform(table)}
    ops = tuple(_filling(table) for table in filled.values())
    tables = tuple(table for table in program.tables if table.name not in filled)
    return replace(program, tables=tables, ops=(*ops, *program.ops))


def _is_uniform(table: Table) -> bool:
    data = table.data
    if data is None or data.dtype not in (np.float32, np.float64) or data.size < 2:
        return False
    first = data.reshape(-1)[:1]
    return bool(np.isfinite(first)) and data.tobytes() == first.tobytes() * data.size


def _filling(table: Table) -> Op:
    assert table.data is not None
    number = Polynomial.constant(float(table.data.reshape(-1)[0]))
    return Op("linear", (), (), (number,), (Value(table.name, table.type),))
