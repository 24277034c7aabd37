"""Find the residual blocks of a captured graph.

A block reaches from a value to the sum of two paths that part at it: x + f(x), or shortcut(x) + f(x). One path
is shorter than the other by a layer at least; the sum of a layer's parts is no block. Values that come from elsewhere,
such as embeddings of the time or the text, are inputs of a block beside x. Blocks do not overlap: of those
that lie in one another the innermost is chosen, by structure and never by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from diffc.compiler.analysis.stages import LATENT, stages_of_nodes, stages_of_ports
from diffc.compiler.graph.body import body_of
from diffc.compiler.ir.program import Graph, Program

aten = torch.ops.aten


def flow_of(graph: Graph, programs: Sequence[Program]) -> list[fx.Node]:
    """List the nodes that depend on the latents, or on any input in a graph without latents."""
    body = body_of(graph)
    stages = stages_of_nodes(body, graph, stages_of_ports(graph, programs))
    latent = {node for node, stage in stages.items() if stage >= LATENT}
    known = latent or {node for node in body.graph.nodes if node.op == "placeholder"}
    flow = dict.fromkeys(node for node in body.graph.nodes if node in known and node.op == "placeholder")
    for node in body.graph.nodes:
        if node.op == "call_function" and any(source in flow for source in node.all_input_nodes):
            flow[node] = None
    return list(flow)


def regions(flow: Sequence[fx.Node], layers: set[str]) -> Iterator[tuple[tuple[fx.Node, ...], fx.Node]]:
    """Return the nodes of each innermost block, and the node at the end of its longer path."""
    place = {node: at for at, node in enumerate(flow)}
    above: list[int] = []  # for each node, a set of bits: itself, and all that it is computed from
    ends = 0
    for at, node in enumerate(flow):
        above.append(1 << at)
        for source in node.all_input_nodes:
            above[at] |= above[place[source]] if source in place else 0
        operands = [place[n] for n in node.all_input_nodes if n in place] if node.target is aten.add.Tensor else []
        if len(operands) != 2 or not (common := above[operands[0]] & above[operands[1]]):
            continue
        first = common.bit_length() - 1
        inside = [n for n in range(first + 1, at + 1) if above[at] >> n & 1 and above[n] >> first & 1]
        depth = _depths([flow[n] for n in inside], layers)
        short, long = sorted(operands, key=lambda n: depth.get(flow[n], 0))
        if depth.get(flow[short], 0) < depth.get(flow[long], 0) and not any(ends >> n & 1 for n in inside):
            ends |= 1 << at
            yield tuple(flow[n] for n in inside), flow[long]


def _depths(nodes: Sequence[fx.Node], layers: set[str]) -> dict[fx.Node, int]:
    """Count the layers on the longest path to each node."""
    depth = dict[fx.Node, int]()
    for node in nodes:
        depth[node] = max((depth.get(source, 0) for source in node.all_input_nodes), default=0) + (node.name in layers)
    return depth
