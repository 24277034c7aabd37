"""Find the values that leave float16's range on calibrated trajectories: decoders in half precision overflow to black.

An activation within a factor of two of float16's largest value is too large: other prompts and seeds reach further than
the calibrated ones. A weight does not vary. Nodes that read a value that is too large must read it in float32.
"""

from __future__ import annotations

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
from diffc.compiler.graph.export import LAYER
from diffc.compiler.ir.program import Graph, Program, Ref

HEADROOM = 2.0

LARGEST = torch.finfo(torch.float16).max
"""65504."""

CALLS = 6
"""The number of calls of a graph that are observed, evenly from the first to the last."""


@dataclass(frozen=True)
class Overflow:
    """Name a node whose value is too large, the layer that it belongs to or follows, and the largest magnitude."""

    node: str
    layer: str
    largest: float


def overflowing(calibration: Calibration, program: Program, graph: Graph) -> list[Overflow]:
    """List the values of a graph that float16 does not hold, in the calls of a calibrated program.

    The graph may be quantized: ``program`` then has the scales of its calls.
    """
    magnitudes, kinds = dict[str, float](), dict[str, str]()

    def seen(node: fx.Node, _: Any, value: Any, __: Sample) -> None:
        if node.op != "get_attr" or node.name not in magnitudes:
            kinds[node.name] = node.op
            magnitudes[node.name] = max(magnitudes.get(node.name, 0.0), _largest(value))

    body = body_of(graph)
    watch(graph, _extended(calibration.of(graph), program, graph), {node.name: () for node in body.graph.nodes}, seen)
    layers = _layers(body)
    limits = {name: LARGEST if kind == "get_attr" else LARGEST / HEADROOM for name, kind in kinds.items()}
    return [Overflow(name, layers[name], largest) for name, largest in magnitudes.items() if largest > limits[name]]


def with_readers(graph: Graph, overflows: Sequence[Overflow]) -> frozenset[str]:
    """Name the nodes of values that are too large, and those that read them."""
    named = {overflow.node for overflow in overflows}
    nodes = [node for node in body_of(graph).graph.nodes if node.name in named]
    return frozenset(named | {user.name for node in nodes for user in node.users})


def _largest(value: Any) -> float:
    """Return the largest magnitude, except for values of masks that stand for minus infinity."""
    if not isinstance(value, torch.Tensor) or value.dtype not in FLOATS or not value.numel():
        return 0.0
    low, high = value.aminmax()
    if low <= -INFINITE:
        low = torch.where(value > -INFINITE, value, 0.0).amin()
    return float(max(-low, high))


def _extended(samples: Sequence[Sample], program: Program, graph: Graph) -> list[Sample]:
    """Choose some samples, and append the inputs that quantization added to the graph: the scales of a step."""
    values: dict[str, Any] = {table.name: torch.as_tensor(table.data) for table in program.tables}
    for op in program.ops:
        if op.operator == "split" and all(name in values for name in op.reads()):
            values |= zip((value.name for value in op.results), apply(op, values, {}), strict=True)
    ops, indices = calls(program, graph), dict.fromkeys(at * (len(samples) - 1) // (CALLS - 1) for at in range(CALLS))
    extended = list[Sample]()
    for sample in (samples[at] for at in indices if samples):
        added = [ops[sample.step].attr(port.name) for port in graph.inputs[len(sample.feeds) :]]
        rows = tuple(values[literal.name] for literal in added if isinstance(literal, Ref))
        extended.append(replace(sample, feeds=(*sample.feeds, *rows)))
    return extended


def _layers(body: fx.GraphModule) -> dict[str, str]:
    """Map each node to the layer whose weight it reads, or to that of its operands."""
    names = dict[str, str]()
    for node in body.graph.nodes:
        if node.op == "get_attr":
            names[node.name] = node.meta.get(LAYER, "")
        else:
            last_first = sorted(node.all_input_nodes, reverse=True)
            weights_first = sorted(last_first, key=lambda source: source.op != "get_attr")
            names[node.name] = next((names[source.name] for source in weights_first if names[source.name]), "")
    return names
