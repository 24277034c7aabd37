"""Find the residual blocks of a captured graph, and cut them out as modules of their own.

A block reaches from a value to the sum of two paths that part at it: ``x + f(x)``, or ``shortcut(x) + f(x)``. One path
is shorter than the other by a layer at least; the sum of a layer's parts is no block. Values that come from elsewhere,
such as embeddings of the time or the text, are inputs of a block beside x. Blocks do not overlap: of those
that lie in one another the innermost is chosen, by structure and never by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from diffc.compiler.analysis.residual_blocks import flow_of, regions
from diffc.compiler.calibration.observe import watch
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.graph.lazy_weights import materialize
from diffc.compiler.ir.program import Graph
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan

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
        """Copy the block into a module that maps its boundary and its layers' weights to its sum.

        If ``watched``, the outputs of all layers but the last follow the sum.
        """
        copy = fx.Graph()
        env = {node: copy.placeholder(node.name) for node in self.boundary}
        weights = {name: copy.placeholder(f"{name}_weight") for name in self.layers}
        for node in self.nodes:
            for source in node.all_input_nodes:
                if source.op == "get_attr" and source not in env:
                    env[source] = copy.node_copy(source)
            env[node] = copy.node_copy(node, env.__getitem__)
            if node.name in weights:
                env[node].args = (env[node].args[0], weights[node.name], *env[node].args[2:])
        layers = [env[node] for node in self.nodes if node.name in self.layers][:-1]
        copy.output((env[self.nodes[-1]], *(layers if watched else [])))
        copy.eliminate_dead_code()
        module = fx.GraphModule(body, copy)
        materialize(module)
        return module


def find_blocks(plan: Plan, includes: Callable[[Layer], bool]) -> list[Block]:
    """List the blocks that hold a layer of ``includes``; each layer is in one block at most."""
    blocks, taken = list[Block](), set[str]()
    for graph in plan.graphs.values():
        if not plan.calibration.of(graph):
            continue
        sites = {site.node: layer for layer in plan.layers for site in layer.sites if site.graph == graph.name}
        weighted = {name: layer for name, layer in sites.items() if layer.kind in ("linear", "conv")}
        for nodes, _ in regions(flow_of(graph, plan.programs), set(weighted)):
            inside = [node.name for node in nodes if node.name in weighted]
            layers = {name: weighted[name] for name in inside if includes(weighted[name])}
            layers = {name: layer for name, layer in layers.items() if layer.name not in taken}
            taken |= {layer.name for layer in layers.values()}
            if layers:
                blocks.append(Block(graph, layers, nodes))
    return blocks


def boundaries(
    plan: Plan, blocks: Sequence[Block], memory: float
) -> Iterator[tuple[Block, list[tuple[torch.Tensor, ...]]]]:
    """Yield each block with its inputs in each sample, for as many at a time as fit into ``memory`` gigabytes."""
    for graph in plan.graphs.values():
        samples = plan.calibration.of(graph)
        batch, used = list[Block](), 0.0
        for block in (block for block in blocks if block.graph.name == graph.name):
            gigabytes = 1e-9 * len(samples) * sum(node.meta["val"].nbytes for node in block.boundary)
            if batch and used + gigabytes > memory:
                yield from _recorded(graph, samples, batch)
                batch, used = [], 0.0
            batch.append(block)
            used += gigabytes
        yield from _recorded(graph, samples, batch)


def _recorded(
    graph: Graph, samples: Sequence[Sample], blocks: Sequence[Block]
) -> Iterator[tuple[Block, list[tuple[torch.Tensor, ...]]]]:
    if not blocks:
        return
    values: dict[str, list[torch.Tensor]] = {node.name: [] for block in blocks for node in block.boundary}
    watch(graph, samples, dict.fromkeys(values, ()), lambda node, _, value, __: values[node.name].append(value))
    for block in blocks:
        columns = [values[node.name] for node in block.boundary]
        yield block, list(zip(*columns, strict=True))
