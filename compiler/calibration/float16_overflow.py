"""Find what leaves float16's range on a calibrated trajectory, of which decoders in half precision make black pictures.

An activation that comes within a factor of two of float16's largest number is too large: other prompts and seeds reach
further than those that were looked at. A weight is what it is. Whatever reads such a number must read it in float32.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from diffc.compiler.analysis.float32_nodes import FLOATS, INFINITE
from diffc.compiler.analysis.stages import calls
from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.calibration.observe import watch
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.evaluate import apply
from diffc.compiler.ir.program import Graph, Program, Ref

HEADROOM = 2.0

LARGEST = torch.finfo(torch.float16).max
"""65504."""

CALLS = 6
"""In how many calls of a graph its values are looked at, from the first to the last."""

MADE = ("known_", "_lifted_", "constant_", "_tensor_constant")
"""How the names begin of what is no weight of the model."""

QUANTIZED = re.compile(r"[a-z]+_\d+_of_(\w+)")
"""What `diffc.compiler.quantization.apply_plan` calls what it made of a layer's weight."""


@dataclass(frozen=True)
class Overflow:
    """Name a node whose value is too large, the layer that it belongs to or follows, and the largest magnitude."""

    node: str
    layer: str
    largest: float


def overflowing(calibration: Calibration, program: Program, graph: Graph) -> list[Overflow]:
    """List the values of a graph that float16 does not hold, in calls as the calibrated program made them.

    The graph may be quantized: ``program`` then says which scales its calls are given.
    """
    found, kinds = dict[str, float](), dict[str, str]()

    def seen(node: fx.Node, _: Any, value: Any, __: Sample) -> None:
        if node.op != "get_attr" or node.name not in found:
            kinds[node.name] = node.op
            found[node.name] = max(found.get(node.name, 0.0), _largest(value))

    body = body_of(graph)
    watch(graph, _given(calibration.of(graph), program, graph), {node.name: () for node in body.graph.nodes}, seen)
    layers = _layers(body)
    limits = {name: LARGEST if kind == "get_attr" else LARGEST / HEADROOM for name, kind in kinds.items()}
    return [Overflow(name, layers[name], largest) for name, largest in found.items() if largest > limits[name]]


def with_readers(graph: Graph, found: Sequence[Overflow]) -> frozenset[str]:
    """Name the nodes of values that are too large, and those that read them."""
    named = {each.node for each in found}
    nodes = [node for node in body_of(graph).graph.nodes if node.name in named]
    return frozenset(named | {user.name for node in nodes for user in node.users})


def _largest(value: Any) -> float:
    """Give the largest magnitude, but for what stands for minus infinity in masks."""
    if not isinstance(value, torch.Tensor) or value.dtype not in FLOATS or not value.numel():
        return 0.0
    low, high = value.aminmax()
    if low <= -INFINITE:
        low = torch.where(value > -INFINITE, value, 0.0).amin()
    return float(max(-low, high))


def _given(samples: Sequence[Sample], program: Program, graph: Graph) -> list[Sample]:
    """Choose some samples, and add what the graph is given since: the scales of a step."""
    values: dict[str, Any] = {table.name: torch.as_tensor(table.data) for table in program.tables}
    for op in program.ops:
        if op.operator == "split" and all(name in values for name in op.reads()):
            values |= zip((value.name for value in op.results), apply(op, values, {}), strict=True)
    ops, chosen = calls(program, graph), dict.fromkeys(at * (len(samples) - 1) // (CALLS - 1) for at in range(CALLS))
    made = list[Sample]()
    for sample in (samples[at] for at in chosen if samples):
        added = [ops[sample.step].attr(port.name) for port in graph.inputs[len(sample.feeds) :]]
        rows = tuple(values[literal.name] for literal in added if isinstance(literal, Ref))
        made.append(replace(sample, feeds=(*sample.feeds, *rows)))
    return made


def _layers(body: fx.GraphModule) -> dict[str, str]:
    """Give each node the name of the layer whose weight it reads, or that of what it is computed from."""
    names = dict[str, str]()
    for node in body.graph.nodes:
        if node.op == "get_attr":
            names[node.name] = _layer(str(node.target))
        else:
            last_first = sorted(node.all_input_nodes, reverse=True)
            weights_first = sorted(last_first, key=lambda source: source.op != "get_attr")
            names[node.name] = next((names[source.name] for source in weights_first if names[source.name]), "")
    return names


def _layer(attribute: str) -> str:
    """Give the name of a layer from that of its weight; none to a constant."""
    name = attribute.replace("region.", "").removeprefix("body.").removeprefix("module.")
    if made := QUANTIZED.fullmatch(name):
        return made[1].replace("__", ".")
    return "" if name.startswith(MADE) else name.removesuffix(".weight").removesuffix(".bias")
