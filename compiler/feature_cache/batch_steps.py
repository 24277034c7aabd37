"""Call a graph once for several steps whose inputs differ only in values known before the loop.

Before:
    y0 = decoder(features=f, step=s0)
    y1 = decoder(features=f, step=s1)

After:
    steps = concat(s0, s1, axis=0)
    both = decoder_2_steps(features=f, step=steps)
    y0, y1 = split(both, axis=0)
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from diffc.compiler.analysis.stages import denoisers, stages_of_values
from diffc.compiler.graph.body import body_of, example_inputs
from diffc.compiler.graph.export import export
from diffc.compiler.ir.program import Graph, Names, Op, Program, Ref, Type, Value

Shared = dict[tuple[str, int, tuple[str, ...]], Graph]
"""The batched graphs, by the name of a graph, a number of steps, and the ports that differ between them."""


def step_batches(programs: Sequence[Program]) -> tuple[Program, ...]:
    """Join calls of the denoiser's partitions with the same latents into one; programs share the graphs."""
    graphs, batched = {graph.name: graph for graph in denoisers(programs)}, Shared()
    return tuple(_batched(program, graphs, batched) for program in programs)


def _batched(program: Program, graphs: Mapping[str, Graph], batched: Shared) -> Program:
    groups = [group for group in _groups(program, graphs) if _differing(group)]
    firsts = {id(group[0]): group for group in groups}
    joined = {id(op) for group in groups for op in group[1:]}
    names, ops, added = Names(program.types()), list[Op](), dict[str, Graph]()
    for op in program.ops:
        if id(op) in firsts:
            group = firsts[id(op)]
            over = _differing(group)
            key = (op.operator, len(group), over)
            batched[key] = batched.get(key) or _over_steps(graphs[op.operator], len(group), over)
            added[batched[key].name] = batched[key]
            ops += _as_one(group, batched[key], over, names)
        elif id(op) not in joined:
            ops.append(op)
    return replace(program, ops=tuple(ops), graphs=(*program.graphs, *added.values())).live()


def _groups(program: Program, graphs: Container[str]) -> Iterable[list[Op]]:
    """Group calls by graph and inputs, where the parts of one value that is known before the loop count as equal."""
    stages, groups = stages_of_values(program), dict[tuple[object, ...], list[Op]]()
    steps = {value.name: op.args for op in program.ops if op.operator == "split" for value in op.results}
    steps = {name: value_of_steps for name, value_of_steps in steps.items() if "latent" not in stages[name]}
    for op in program.ops:
        if op.operator in graphs:
            inputs = tuple(
                steps.get(literal.name, literal) if isinstance(literal, Ref) else literal for _, literal in op.attrs
            )
            groups.setdefault((op.operator, inputs), []).append(op)
    return groups.values()


def _differing(group: Sequence[Op]) -> tuple[str, ...]:
    """List the ports at which the calls of a group differ."""
    return tuple(port for port, literal in group[0].attrs if any(op.attr(port) != literal for op in group))


def _as_one(group: Sequence[Op], graph: Graph, over: Sequence[str], names: Names) -> list[Op]:
    """Concatenate the inputs that differ, call the graph, and split its results."""
    ops, attrs = list[Op](), dict(group[0].attrs)
    types = {port.name: port.type for port in graph.inputs}
    for port in over:
        parts = tuple(op.attr(port) for op in group)
        joined = Value(names.new(f"{port}_of_steps_"), types[port])
        ops.append(Op("concat", parts, (("axis", 0),), (), (joined,)))
        attrs[port] = Ref(joined.name)
    results = tuple(Value(names.new(f"{port.name}_of_steps_"), port.type) for port in graph.outputs)
    ops.append(Op(graph.name, (), tuple(attrs.items()), (), results))
    for at, result in enumerate(results):
        of_calls = tuple(op.results[at] for op in group)
        ops.append(Op("split", (Ref(result.name),), (("axis", 0),), (), of_calls))
    return ops


def _over_steps(graph: Graph, count: int, over: tuple[str, ...]) -> Graph:
    inputs = tuple(_of_steps(port, count) if port.name in over else port for port in graph.inputs)
    outputs = tuple(_of_steps(port, count) for port in graph.outputs)
    example = example_inputs(inputs)
    name = f"{graph.name}_{count}_steps"
    dims = tuple(0 if port.name in over else None for port in graph.inputs)
    body = export(name, _OverSteps(body_of(graph), count, dims), example)
    return replace(graph, name=name, inputs=inputs, outputs=outputs, body=body)


def _of_steps(port: Value, count: int) -> Value:
    first, *rest = port.type.shape
    return Value(port.name, Type(port.type.dtype, (count * first, *rest)))


class _OverSteps(nn.Module):
    """Compute for several steps, which lie side by side on the first axis of some inputs and of all outputs."""

    def __init__(self, region: fx.GraphModule, count: int, dims: tuple[int | None, ...]) -> None:
        super().__init__()
        self.region, self.count, self.dims = region, count, dims

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute each output for all steps."""
        pairs = zip(inputs, self.dims, strict=True)
        inputs_of_step = [x if dim is None else x.reshape(self.count, -1, *x.shape[1:]) for x, dim in pairs]
        outputs = torch.vmap(self.region, in_dims=self.dims)(*inputs_of_step)
        return tuple(y.reshape(-1, *y.shape[2:]) for y in outputs)
