"""Find the residual blocks of a captured graph, and cut them out as modules of their own.

A block reaches from a value to the sum of two paths that part at it: ``x + f(x)``, or ``shortcut(x) + f(x)``. One path
is shorter than the other by a layer at least; the sum of a layer's parts is no block. Values that come from elsewhere,
such as what is known of the time or the text, are inputs of a block beside x. Blocks do not overlap: of those
that lie in one another the innermost is taken. Nothing is known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from diffc.compiler.analysis.stages import LATENT, body_of, stages_of_nodes, stages_of_ports
from diffc.compiler.calibration.calibrate import Sample, watch
from diffc.compiler.graph.lazy_weights import settle
from diffc.compiler.ir.program import Graph, Program
from diffc.compiler.quantization.plan import Layer, Plan

aten = torch.ops.aten


@dataclass(frozen=True)
class Block:
    """Hold a block: its graph, its layers by node, and its nodes in order, the last of which is the sum."""

    graph: Graph
    layers: Mapping[str, Layer]
    nodes: tuple[fx.Node, ...]

    @property
    def boundary(self) -> list[fx.Node]:
        """List the values that come from outside, weights aside."""
        inside = set(self.nodes)
        sources = dict.fromkeys(source for node in self.nodes for source in node.all_input_nodes)
        return [source for source in sources if source not in inside and source.op != "get_attr"]

    def module(self, body: fx.GraphModule, watched: bool) -> fx.GraphModule:
        """Cut the block out: of its boundary and its layers' weights it gives its sum, and of ``watched`` layers all.

        The outputs of layers follow the sum, but for the last layer's.
        """
        made = fx.Graph()
        env = {node: made.placeholder(node.name) for node in self.boundary}
        weights = {name: made.placeholder(f"{name}_weight") for name in self.layers}
        for node in self.nodes:
            for source in node.all_input_nodes:
                if source.op == "get_attr" and source not in env:
                    env[source] = made.node_copy(source)
            env[node] = made.node_copy(node, env.__getitem__)
            if node.name in weights:
                env[node].args = (env[node].args[0], weights[node.name], *env[node].args[2:])
        layers = [env[node] for node in self.nodes if node.name in self.layers][:-1]
        made.output((env[self.nodes[-1]], *(layers if watched else [])))
        made.eliminate_dead_code()
        module = fx.GraphModule(body, made)
        settle(module)
        return module


def find_blocks(plan: Plan, wanted: Callable[[Layer], bool]) -> list[Block]:
    """List the blocks that hold a wanted layer, each of which is in one block at most."""
    found, taken = list[Block](), set[str]()
    for graph in plan.graphs.values():
        if not plan.calibration.of(graph):
            continue
        sites = {site.node: layer for layer in plan.layers for site in layer.sites if site.graph == graph.name}
        weighted = {name: layer for name, layer in sites.items() if layer.kind in ("linear", "conv")}
        for nodes, _ in regions(flow_of(graph, plan.programs), set(weighted)):
            inside = [node.name for node in nodes if node.name in weighted]
            layers = {name: weighted[name] for name in inside if wanted(weighted[name])}
            layers = {name: layer for name, layer in layers.items() if layer.name not in taken}
            taken |= {layer.name for layer in layers.values()}
            if layers:
                found.append(Block(graph, layers, nodes))
    return found


def flow_of(graph: Graph, programs: Sequence[Program]) -> list[fx.Node]:
    """List what depends on the latents, or in a graph that has none on any input."""
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
    """Give the nodes of each block, innermost blocks only, and which of them is the end of the longer path."""
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


def boundaries(
    plan: Plan, blocks: Sequence[Block], memory: float
) -> Iterator[tuple[Block, list[tuple[torch.Tensor, ...]]]]:
    """Give each block with what reaches it in each sample, for as many at a time as fit into ``memory`` gigabytes."""
    for graph in plan.graphs.values():
        samples = plan.calibration.of(graph)
        some, used = list[Block](), 0.0
        for block in (block for block in blocks if block.graph.name == graph.name):
            wanted = 1e-9 * len(samples) * sum(node.meta["val"].nbytes for node in block.boundary)
            if some and used + wanted > memory:
                yield from _kept(graph, samples, some)
                some, used = [], 0.0
            some.append(block)
            used += wanted
        yield from _kept(graph, samples, some)


def _kept(
    graph: Graph, samples: Sequence[Sample], blocks: Sequence[Block]
) -> Iterator[tuple[Block, list[tuple[torch.Tensor, ...]]]]:
    if not blocks:
        return
    kept: dict[str, list[torch.Tensor]] = {node.name: [] for block in blocks for node in block.boundary}
    watch(graph, samples, dict.fromkeys(kept, ()), lambda node, _, made, __: kept[node.name].append(made))
    for block in blocks:
        columns = [kept[node.name] for node in block.boundary]
        yield block, list(zip(*columns, strict=True))
