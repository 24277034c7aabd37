"""Divide a graph into disjoint partitions, so that a call that reuses some of its values runs only what it needs.

Before (inside a graph):
    h, s = head(x)
    y = tail(s, deep(h))

After, for calls that compute all and calls that reuse the output of ``deep``:
    partition 1:  h, s = head(x)        both
    partition 2:  d = deep(h)           the first
    partition 3:  y = tail(s, d)        both
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from diffc.compiler.analysis.features import Feature, ReusePattern
from diffc.compiler.analysis.stages import stages_of_nodes, stages_of_ports
from diffc.compiler.analysis.work import multiply_adds
from diffc.compiler.errors import PassError
from diffc.compiler.graph.body import body_of, example_inputs, needed
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.ir.program import Graph, Program, Type, Value


@dataclass(frozen=True)
class Partition:
    """Hold a partition as a graph, the reuse patterns that run it, and the nodes of its ports, in their order."""

    graph: Graph
    patterns: frozenset[ReusePattern]
    reads: tuple[fx.Node, ...]
    writes: tuple[fx.Node, ...]


class Partitions:
    """Divide a graph so that calls of some reuse patterns compute only what they need.

    A partition holds the nodes that the same patterns need. Such nodes have different levels where one is computed from
    another through nodes of other partitions, so that a partition reads from lower levels only. Cheap values known
    before the loop, such as parts of table rows, are computed in each partition that reads them.
    """

    def __init__(self, graph: Graph, programs: Sequence[Program], patterns: Collection[ReusePattern]) -> None:
        self.graph, self.body = graph, body_of(graph)
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.body.graph.nodes}
        self.ports: dict[fx.Node, Value] = dict(zip(self._placeholders(), graph.inputs, strict=True))
        self.outputs: list[fx.Node] = list(self.body.graph.output_node().args[0])  # type: ignore[arg-type]
        self.patterns: dict[fx.Node, frozenset[ReusePattern]] = self._patterns(patterns)
        self.prepared = self._prepared(stages_of_ports(graph, programs))
        self.partitions = self._partitions(
            {name for pattern in patterns for f in pattern for name in (f.node, f.base) if name}
        )

    def type(self, node: str) -> Type:
        """Describe the value of a node."""
        return type_of(self.nodes[node].meta["val"])

    def _placeholders(self) -> list[fx.Node]:
        placeholders: list[fx.Node] = self.body.graph.find_nodes(op="placeholder")
        return placeholders

    def _patterns(self, patterns: Iterable[ReusePattern]) -> dict[fx.Node, frozenset[ReusePattern]]:
        """Map each node to the reuse patterns whose calls compute it."""
        computing: dict[fx.Node, set[ReusePattern]] = {node: set() for node in self.body.graph.nodes}
        for pattern in patterns:
            for feature in pattern:
                self._check(feature)
            reused = {self.nodes[feature.node] for feature in pattern}
            bases = {self.nodes[feature.base] for feature in pattern if feature.base}
            computed = needed(self.body.graph, {self.body.graph.output_node(), *bases}, reused) - reused
            parts = {user for node in computed for user in node.users if user.target is operator.getitem}
            for node in computed | parts:
                computing[node].add(pattern)
        return {node: frozenset(of_node) for node, of_node in computing.items()}

    def _check(self, feature: Feature) -> None:
        """Raise `PassError` where a feature is not the tensor of an operator that is computed from its base, if any."""
        node, base = self.nodes.get(feature.node), self.nodes.get(feature.base)
        is_computed = node is not None and node.op == "call_function" and node.target is not operator.getitem
        if not is_computed or not isinstance(node.meta["val"], torch.Tensor):  # type: ignore[union-attr]
            raise PassError(f"{feature.node} is no feature that can be kept", where=self.graph.name)
        if feature.base and base not in needed(self.body.graph, [node], ()):  # type: ignore[list-item]
            raise PassError(f"{feature.node} is not computed from {feature.base}", where=self.graph.name)

    def _prepared(self, ports: Mapping[str, frozenset[str]]) -> set[fx.Node]:
        """List the nodes that each partition computes itself: ports, weights and cheap values known before the loop."""
        stages, prepared = stages_of_nodes(self.body, self.graph, ports), set[fx.Node]()
        for node in self.body.graph.nodes:
            early = "latent" not in stages[node] and node not in self.outputs and not multiply_adds(node)
            if node.op in ("placeholder", "get_attr") or (early and prepared.issuperset(node.all_input_nodes)):
                prepared.add(node)
        return prepared

    def _partitions(self, reused: Collection[str]) -> list[Partition]:
        """Group nodes by reuse patterns and level, and export each group."""
        levels, groups = dict[fx.Node, int](), dict[tuple[int, frozenset[ReusePattern]], list[fx.Node]]()
        for node in self.body.graph.nodes:
            if node in self.prepared or not self.patterns[node] or node.op == "output":
                continue
            below = [source for source in node.all_input_nodes if source in levels]
            levels[node] = max((levels[b] + (self.patterns[b] != self.patterns[node]) for b in below), default=0)
            groups.setdefault((levels[node], self.patterns[node]), []).append(node)
        self.place = {node: key for key, group in groups.items() for node in group}
        read = {self.nodes[name] for name in reused} | set(self.outputs)
        partitions = []
        for at, key in enumerate(sorted(groups, key=lambda key: key[0])):
            partitions.append(self._partition(f"{self.graph.name}_piece_{at + 1}", key[1], groups[key], read))
        return partitions

    def _partition(
        self, name: str, patterns: frozenset[ReusePattern], group: list[fx.Node], read: Collection[fx.Node]
    ) -> Partition:
        place, copy, env = self.place[group[0]], fx.Graph(), dict[fx.Node, fx.Node]()
        outside = [node for node, there in self.place.items() if there != place]
        inside = needed(self.body.graph, group, outside)
        reads = tuple(node for node in self.nodes.values() if node in inside and self._is_read(node, place))
        writes = tuple(n for n in group if n in read or any(self.place.get(u, place) != place for u in n.users))
        for node in self.nodes.values():
            if node in reads:
                env[node] = copy.placeholder(self._port(node).name)
            elif node in inside:
                env[node] = copy.node_copy(node, env.__getitem__)
        copy.output(tuple(env[node] for node in writes))
        inputs, outputs = tuple(map(self._port, reads)), tuple(map(self._port, writes))
        body = export(name, fx.GraphModule(self.body, copy), example_inputs(inputs))
        hidden = frozenset(
            self._port(n).name for n in (*reads, *writes) if n not in self.ports and n not in self.outputs
        )
        return Partition(Graph(name, inputs, outputs, body, self.graph.component, "", hidden), patterns, reads, writes)

    def _is_read(self, node: fx.Node, place: object) -> bool:
        return node in self.ports or self.place.get(node, place) != place

    def _port(self, node: fx.Node) -> Value:
        """Name a value between partitions; the graph's own ports keep their names."""
        if node in self.ports:
            return self.ports[node]
        if node in self.outputs:
            return self.graph.outputs[self.outputs.index(node)]
        taken = {port.name for port in (*self.graph.inputs, *self.graph.outputs)}
        return Value(f"{node.name}_value" if node.name in taken else node.name, type_of(node.meta["val"]))
