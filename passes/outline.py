"""Move what is left of the arithmetic between calls into small graphs of its own.

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
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from diffc.compiler.errors import PassError
from diffc.compiler.evaluate import apply
from diffc.compiler.graphs import export
from diffc.compiler.ir import Graph, Op, Program, Ref, Type, Value
from diffc.compiler.text import print_op


def outline(program: Program) -> Program:
    """Turn each run of ATen operations, with the linear operations inside it, into a graph and a call of it."""
    types = program.types()
    graphs = {graph.name: graph for graph in program.graphs}
    ops = list[Op]()
    remaining = list(program.ops)
    while remaining:
        run = _leading_run(remaining)
        if not run:
            ops.append(remaining.pop(0))
            continue
        remaining = remaining[len(run) :]
        read_later = {name for op in remaining for name in op.reads()} | set(program.outputs)
        graph, call = _graph(run, types, read_later)
        graphs[graph.name] = graph
        ops.append(call)
    return replace(program, ops=tuple(ops), graphs=tuple(graphs.values())).live()


def _leading_run(ops: list[Op]) -> list[Op]:
    """Take operations from the front as long as they belong together; the last one is ATen's."""
    run, made = list[Op](), set[str]()
    for op in ops:
        inside = op.operator == "linear" and made.issuperset(op.reads()) and all(c.is_constant for c in op.coefficients)
        if not (op.operator.startswith("aten.") or (run and inside)):
            break
        run.append(op)
        made.update(value.name for value in op.results)
    while run and not run[-1].operator.startswith("aten."):
        run.pop()
    return run


def _graph(run: list[Op], types: Mapping[str, Type | None], read_later: set[str]) -> tuple[Graph, Op]:
    made = {value.name: value for op in run for value in op.results}
    read = [name for name in dict.fromkeys(n for op in run for n in op.reads()) if name not in made]
    results = [value for value in made.values() if value.name in read_later]
    ports = {name: f"in{i}" if len(read) > 1 else "in" for i, name in enumerate(read)}
    inputs = tuple(Value(ports[name], types[name]) for name in read)
    body = [op.renamed(ports) for op in run]
    for port in inputs:
        if port.type is None or port.type.dtype in ("text", "scalar"):
            raise PassError(f"outline: {port.name} has no tensor type", where=print_op(run[0]))
    outputs = tuple(Value(f"out{i}" if len(results) > 1 else "out", value.type) for i, value in enumerate(results))
    digest = hashlib.sha256("\n".join(_canonical(inputs, body, results)).encode()).hexdigest()[:8]
    kinds = dict.fromkeys(op.operator.split(".")[1] for op in run if op.operator != "linear")
    name = "_".join([*list(kinds)[:3], digest])
    example = [torch.zeros(p.type.shape, dtype=getattr(torch, p.type.dtype)) for p in inputs if p.type is not None]
    exported = export(name, _Region(body, ports, results), example)
    call = Op(name, (), tuple((ports[n], Ref(n)) for n in read), (), tuple(results))
    return Graph(name, inputs, outputs, exported, "arithmetic"), call


def _canonical(inputs: Sequence[Value], body: list[Op], results: list[Value]) -> Iterator[str]:
    """Print a computation with its values numbered in order, so that the same computation has the same text."""
    yield repr(inputs)
    numbers: dict[str, str] = {}
    for op in body:
        renamed = op.renamed(numbers)
        for value in op.results:
            numbers[value.name] = f"v{len(numbers)}"
        yield print_op(replace(renamed, results=tuple(Value(numbers[v.name], v.type) for v in op.results)))
    yield " ".join(numbers[value.name] for value in results)


class _Region(torch.nn.Module):
    """Apply operations to values by name."""

    def __init__(self, body: list[Op], ports: dict[str, str], results: list[Value]) -> None:
        super().__init__()
        self.body, self.ports, self.results = body, list(ports.values()), [value.name for value in results]

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = dict(zip(self.ports, tensors, strict=True))
        for op in self.body:
            values |= {v.name: t for v, t in zip(op.results, apply(op, values, {}), strict=True)}
        return tuple(values[name] for name in self.results)
