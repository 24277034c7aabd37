"""Move the remaining arithmetic between calls into small graphs of its own.

Source: diffc, decision 0002: clamps, masks, resizes and other operators that are not linear run in the engine like the
        components do, https://docs.pytorch.org/docs/stable/export.html

Before:
    n: float32[2] = noise()
    a: float32[2] = aten.abs.default(n)
    b: float32[2] = linear(a; 0.5, 0.5)
    y: float32[2] = aten.clamp.default(b, 0, 1)

After:
    n: float32[2] = noise()
    y: float32[2] = abs_clamp_f92388fc(in=n)

Computations that differ in the factors of their sums alone, as the steps of a sampler do, share one graph, which reads
the factors from a table.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from diffc.compiler.errors import PassError
from diffc.compiler.graph.body import body_of, example_inputs
from diffc.compiler.graph.evaluate import apply
from diffc.compiler.graph.export import export
from diffc.compiler.graph.open_sizes import check_ends, dynamic_sizes, evaluated, lengths_in, lengths_of, marker, number
from diffc.compiler.ir.program import ARITHMETIC, Graph, Length, Op, Polynomial, Program, Ref, Size, Table, Type, Value

FACTORS = "factors"


def outline(program: Program) -> Program:
    """Turn each run of ATen operations, with the linear operations inside it, into a graph and a call of it."""
    types = program.types()
    parts = list[Op | _Region]()
    remaining = list(program.ops)
    while remaining:
        run = _leading_run(remaining)
        if not run:
            parts.append(remaining.pop(0))
            continue
        remaining = remaining[len(run) :]
        read_later = {name for op in remaining for name in op.reads()} | set(program.outputs)
        parts.append(_Region(run, types, read_later, program.lengths))

    seen = defaultdict[str, set[tuple[float, ...]]](set)
    for part in parts:
        if isinstance(part, _Region):
            seen[part.text(with_factors=False)].add(part.factors)
    graphs = {graph.name: graph for graph in program.graphs}
    tables = {table.name: table for table in program.tables}
    ops = list[Op]()
    for part in parts:
        if isinstance(part, _Region):
            if len(seen[part.text(with_factors=False)]) > 1:
                table = part.read_factors()
                tables[table.name] = table
            if part.name not in graphs:
                graphs[part.name] = part.graph()
            part = part.call()
        ops.append(part)
    return replace(program, ops=tuple(ops), graphs=tuple(graphs.values()), tables=tuple(tables.values())).live()


def _leading_run(ops: list[Op]) -> list[Op]:
    """Take operations from the front as long as they belong together; the first and the last one are ATen's."""
    run = list[Op]()
    for op in ops:
        inside = op.operator == "linear" and all(factor.is_constant for factor in op.coefficients)
        if not (op.operator.startswith("aten.") or (run and inside)):
            break
        run.append(op)
    while run and not run[-1].operator.startswith("aten."):
        run.pop()
    return run


class _Region(torch.nn.Module):
    """Apply a run of operations to the values that it reads from outside."""

    def __init__(
        self, run: list[Op], types: Mapping[str, Type], read_later: set[str], lengths: Sequence[Length]
    ) -> None:
        super().__init__()
        results = {value.name: value for op in run for value in op.results}
        self.read = [name for name in dict.fromkeys(n for op in run for n in op.reads()) if name not in results]
        self.lengths = [
            length for length in lengths if length.name in _lengths(run, [types[name] for name in self.read])
        ]
        decided = lengths_in([types[name] for name in self.read])
        self.counts = [length for length in self.lengths if length.name not in decided]
        self.read += [length.name for length in self.counts if length.name not in self.read]
        ports = {name: f"in{i}" if len(self.read) > 1 else "in" for i, name in enumerate(self.read)}
        self.ports = ports
        self.inputs = tuple(Value(ports[name], types[name]) for name in self.read)
        self.results = [value for value in results.values() if value.name in read_later]
        self.body = [op.renamed(ports) for op in run]
        self.factors = tuple(factor({}) for op in run for factor in op.coefficients)
        self.table: Table | None = None
        for port in self.inputs:
            if port.type.dtype in ("", "text", "scalar"):
                raise PassError(f"outline: {port.name} has no tensor type", where=str(run[0]))

    @property
    def name(self) -> str:
        """Name the computation by its operators and a digest: the same computation has the same name."""
        kinds = dict.fromkeys(op.operator.split(".")[1] for op in self.body if op.operator != "linear")
        digest = hashlib.sha256(self.text(with_factors=self.table is None).encode()).hexdigest()[:8]
        return "_".join([*list(kinds)[:3], digest])

    def text(self, *, with_factors: bool) -> str:
        """Print the computation with its values numbered in order, with or without the factors of its sums."""
        text = "\n".join(_canonical(self.inputs, self.body, self.results, with_factors=with_factors))
        for at, length in enumerate(self.lengths if not self.counts else ()):
            text = re.sub(rf"\b{length.name}\b", f"length{at}", text)
        bounds = [f"{length.least} to {length.most}" for length in self.lengths]
        return "\n".join([text, *bounds])

    def read_factors(self) -> Table:
        """Read the factors from a table from now on, and return it."""
        data = np.array(self.factors)
        name = f"t{hashlib.sha256(data.tobytes()).hexdigest()[:10]}"
        self.table = Table(name, Type(str(data.dtype), data.shape), data)
        self.read = [*self.read, name]
        self.inputs = (*self.inputs, Value(FACTORS, self.table.type))
        return self.table

    def graph(self) -> Graph:
        """Export the computation."""
        outputs = tuple(
            Value(f"out{i}" if len(self.results) > 1 else "out", value.type) for i, value in enumerate(self.results)
        )
        markers, least, most = (
            self._assumed({length.name: count(length) for length in self.lengths})
            for count in (marker, attrgetter("least"), attrgetter("most"))
        )
        sizes = dynamic_sizes([port.type for port in self.inputs], self.lengths)
        body = export(self.name, self, example_inputs(self.inputs, markers), sizes=sizes)
        graph = Graph(self.name, self.inputs, outputs, body, ARITHMETIC)
        if self.lengths:
            check_ends(self.name, self, body_of(graph), self.inputs, (least, most))
        return graph

    def _assumed(self, lengths: Mapping[str, int]) -> dict[str, int]:
        """Return lengths by name, and by the ports that take them."""
        return {**lengths, **{self.ports[length.name]: lengths[length.name] for length in self.counts}}

    def call(self) -> Op:
        """Call the graph where the computation stood."""
        arguments = tuple((port.name, Ref(name)) for port, name in zip(self.inputs, self.read, strict=True))
        return Op(self.name, (), arguments, (), tuple(self.results))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values: dict[str, Any] = {port.name: tensor for port, tensor in zip(self.inputs, tensors, strict=True)}
        values |= lengths_of(self.inputs, tensors)
        values |= {length.name: number(values[self.ports[length.name]], length) for length in self.counts}
        factors = iter(values[FACTORS].unbind() if self.table else ())
        for op in self.body:
            if self.table and op.operator == "linear":
                results: Sequence[torch.Tensor] = [_weighted_sum(op, values, factors)]
            else:
                results = apply(op, values, {})
            values |= {value.name: tensor for value, tensor in zip(op.results, results, strict=True)}
        return tuple(values[value.name] for value in self.results)


def _lengths(run: Sequence[Op], types: Sequence[Type]) -> set[str]:
    """Return the names of the lengths in arguments of operations, and in types, of results and others."""
    literals = [literal for op in run for literal in (*op.args, *dict(op.attrs).values())]
    sizes = [size for literal in literals for size in (literal if isinstance(literal, tuple) else (literal,))]
    named = {name for size in sizes if isinstance(size, Size) for name in size.lengths}
    types = [*types, *(value.type for op in run for value in op.results)]
    return named | {name for type_ in types for name in type_.lengths}


def _weighted_sum(op: Op, values: Mapping[str, torch.Tensor], factors: Iterator[torch.Tensor]) -> torch.Tensor:
    """Apply a linear operation with factors that are tensors."""
    type_ = op.results[0].type
    dtype = getattr(torch, type_.dtype)
    total = torch.zeros((), dtype=dtype)
    for name, _ in zip((*op.reads(), None), op.coefficients, strict=False):
        factor = next(factors).to(dtype)
        total = total + (factor if name is None else factor * values[name])
    return total.expand([evaluated(size, values) for size in type_.shape])


def _canonical(inputs: Sequence[Value], body: list[Op], results: list[Value], *, with_factors: bool) -> Iterator[str]:
    yield repr(inputs)
    numbers: dict[str, str] = {}
    for op in body:
        renamed = op.renamed(numbers)
        for value in op.results:
            numbers[value.name] = f"v{len(numbers)}"
        if not with_factors:
            renamed = replace(renamed, coefficients=(Polynomial.constant(1.0),) * len(op.coefficients))
        yield str(replace(renamed, results=tuple(Value(numbers[v.name], v.type) for v in op.results)))
    yield " ".join(numbers[value.name] for value in results)
