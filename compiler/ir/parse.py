"""Read programs and sketches for the compiler: ``parse(str(program)) == program``, but for bodies and data."""

from __future__ import annotations

from diffc.compiler.ir.program import Graph, Input, Program, Table, Type
from diffc.runtime.program.parse import Reader


def parse(text: str) -> Program:
    """Read a program, or bare operations (a sketch: its inputs are what it reads, its outputs what it never reads).

    Values need no types. Raises `ParseError` with the line that is not in the grammar.
    """
    reader = Reader(text, untyped=True)
    if reader.peek() != "program":
        return _sketch(reader)
    read = reader.program()
    graphs = tuple(Graph(graph.name, graph.inputs, graph.outputs) for graph in read.graphs)
    tables = tuple(Table(table.name, table.type) for table in read.tables)
    return Program(read.name, read.inputs, read.guards, graphs, tables, read.ops, read.outputs, read.lengths)


def _sketch(reader: Reader) -> Program:
    ops = []
    while reader.peek():
        ops.append(reader.op())
    written = [value.name for op in ops for value in op.results]
    read = [name for op in ops for name in op.reads()]
    inputs = dict.fromkeys(name for name in read if name not in written)
    free = tuple(Input(name, Type("text", (1,))) for name in inputs)
    return Program("sketch", inputs=free, ops=tuple(ops), outputs=tuple(n for n in written if n not in read))
