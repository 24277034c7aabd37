"""Read captured graphs: their bodies, sizes and parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import fx

from diffc.compiler.ir.program import Graph, Value


def body_of(graph: Graph) -> fx.GraphModule:
    """Return a captured graph as a module whose nodes are ports, weights and operators only."""
    module: fx.GraphModule = graph.body.module(check_guards=False)
    return module


def example_inputs(ports: Iterable[Value], lengths: Mapping[str, int] = MappingProxyType({})) -> list[torch.Tensor]:
    """Return zeros of the shapes and types of ports, for an export; a port that takes a length has its value."""
    return [
        torch.full(port.type.at(lengths).fixed, lengths.get(port.name, 0), dtype=getattr(torch, port.type.dtype))
        for port in ports
    ]


def size(graph: Graph) -> int:
    """Count the weights of a graph; none where it has no body."""
    return sum(weight.numel() for weight in graph.body.state_dict.values()) if graph.body else 0


def needed(graph: fx.Graph, nodes: Iterable[fx.Node], inputs: Iterable[fx.Node]) -> set[fx.Node]:
    """Find all nodes that some nodes are computed from, back to ``inputs``."""
    required, stop = set(nodes), set(inputs)
    for node in reversed(graph.nodes):
        if node in required and node not in stop:
            required.update(node.all_input_nodes)
    return required
