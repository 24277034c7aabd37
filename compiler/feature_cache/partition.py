"""Cut a graph into disjoint pieces, so that a call that is given some of its values runs those that it still needs.

Before (inside a graph):
    h, s = head(x)
    y = tail(s, deep(h))

After, for calls that compute all and calls that are given what ``deep`` makes:
    piece 1:  h, s = head(x)        both
    piece 2:  d = deep(h)           the first
    piece 3:  y = tail(s, d)        both
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from diffc.compiler.analysis.features import Feature, Kind
from diffc.compiler.analysis.stages import stages_of_nodes, stages_of_ports
from diffc.compiler.analysis.work import multiply_adds
from diffc.compiler.errors import PassError
from diffc.compiler.graph.body import body_of, example_inputs, needed
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.ir.program import Graph, Program, Type, Value


@dataclass(frozen=True)
class Piece:
    """Hold a piece as a graph: which kinds of calls run it, and the nodes that its ports stand for, in their order."""

    graph: Graph
    kinds: frozenset[Kind]
    reads: tuple[fx.Node, ...]
    gives: tuple[fx.Node, ...]


class Pieces:
    """Cut a graph for some kinds of calls, which together compute nothing in vain.

    A piece holds nodes that the same kinds need. Where such nodes are computed from each other by way of others they
    are of different levels, so that a piece reads of pieces of lower levels alone. What is cheap and known before the
    loop, parts of table rows above all, is computed in each piece that reads it.
    """

    def __init__(self, graph: Graph, programs: Sequence[Program], kinds: Collection[Kind]) -> None:
        self.graph, self.body = graph, body_of(graph)
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.body.graph.nodes}
        self.ports: dict[fx.Node, Value] = dict(zip(self._placeholders(), graph.inputs, strict=True))
        self.outputs: list[fx.Node] = list(self.body.graph.output_node().args[0])  # type: ignore[arg-type]
        self.kinds: dict[fx.Node, frozenset[Kind]] = self._kinds(kinds)
        self.prepared = self._prepared(stages_of_ports(graph, programs))
        self.pieces = self._pieces({name for kind in kinds for f in kind for name in (f.node, f.base) if name})

    def type(self, node: str) -> Type:
        """Describe the value of a node."""
        return type_of(self.nodes[node].meta["val"])

    def _placeholders(self) -> list[fx.Node]:
        found: list[fx.Node] = self.body.graph.find_nodes(op="placeholder")
        return found

    def _kinds(self, kinds: Iterable[Kind]) -> dict[fx.Node, frozenset[Kind]]:
        """Say for each node which kinds of calls compute it."""
        found: dict[fx.Node, set[Kind]] = {node: set() for node in self.body.graph.nodes}
        for kind in kinds:
            for feature in kind:
                self._check(feature)
            given = {self.nodes[feature.node] for feature in kind}
            bases = {self.nodes[feature.base] for feature in kind if feature.base}
            wanted = needed(self.body.graph, {self.body.graph.output_node(), *bases}, given) - given
            parts = {user for node in wanted for user in node.users if user.target is operator.getitem}
            for node in wanted | parts:
                found[node].add(kind)
        return {node: frozenset(each) for node, each in found.items()}

    def _check(self, feature: Feature) -> None:
        """Raise `PassError` where a feature is no tensor that an operator makes, of its base if it has one."""
        node, base = self.nodes.get(feature.node), self.nodes.get(feature.base)
        made = node is not None and node.op == "call_function" and node.target is not operator.getitem
        if not made or not isinstance(node.meta["val"], torch.Tensor):  # type: ignore[union-attr]
            raise PassError(f"{feature.node} is no feature that can be kept", where=self.graph.name)
        if feature.base and base not in needed(self.body.graph, [node], ()):  # type: ignore[list-item]
            raise PassError(f"{feature.node} is not computed from {feature.base}", where=self.graph.name)

    def _prepared(self, ports: Mapping[str, frozenset[str]]) -> set[fx.Node]:
        """List what no piece gives to others: ports, weights, and what follows cheaply from them before the loop."""
        stages, found = stages_of_nodes(self.body, self.graph, ports), set[fx.Node]()
        for node in self.body.graph.nodes:
            early = "latent" not in stages[node] and node not in self.outputs and not multiply_adds(node)
            if node.op in ("placeholder", "get_attr") or (early and found.issuperset(node.all_input_nodes)):
                found.add(node)
        return found

    def _pieces(self, kept: Collection[str]) -> list[Piece]:
        """Group nodes by kinds and level, and make graphs of the groups."""
        levels, groups = dict[fx.Node, int](), dict[tuple[int, frozenset[Kind]], list[fx.Node]]()
        for node in self.body.graph.nodes:
            if node in self.prepared or not self.kinds[node] or node.op == "output":
                continue
            below = [source for source in node.all_input_nodes if source in levels]
            levels[node] = max((levels[b] + (self.kinds[b] != self.kinds[node]) for b in below), default=0)
            groups.setdefault((levels[node], self.kinds[node]), []).append(node)
        self.place = {node: key for key, group in groups.items() for node in group}
        wanted = {self.nodes[name] for name in kept} | set(self.outputs)
        found = []
        for at, key in enumerate(sorted(groups, key=lambda key: key[0])):
            found.append(self._piece(f"{self.graph.name}_piece_{at + 1}", key[1], groups[key], wanted))
        return found

    def _piece(self, name: str, kinds: frozenset[Kind], group: list[fx.Node], wanted: Collection[fx.Node]) -> Piece:
        place, made, env = self.place[group[0]], fx.Graph(), dict[fx.Node, fx.Node]()
        outside = [node for node, there in self.place.items() if there != place]
        inside = needed(self.body.graph, group, outside)
        reads = tuple(node for node in self.nodes.values() if node in inside and self._is_read(node, place))
        gives = tuple(n for n in group if n in wanted or any(self.place.get(u, place) != place for u in n.users))
        for node in self.nodes.values():
            if node in reads:
                env[node] = made.placeholder(self._port(node).name)
            elif node in inside:
                env[node] = made.node_copy(node, env.__getitem__)
        made.output(tuple(env[node] for node in gives))
        inputs, outputs = tuple(map(self._port, reads)), tuple(map(self._port, gives))
        body = export(name, fx.GraphModule(self.body, made), example_inputs(inputs))
        hidden = frozenset(
            self._port(n).name for n in (*reads, *gives) if n not in self.ports and n not in self.outputs
        )
        return Piece(Graph(name, inputs, outputs, body, self.graph.component, "", hidden), kinds, reads, gives)

    def _is_read(self, node: fx.Node, place: object) -> bool:
        return node in self.ports or self.place.get(node, place) != place

    def _port(self, node: fx.Node) -> Value:
        """Name a node between pieces; the graph's own ports keep their names."""
        if node in self.ports:
            return self.ports[node]
        if node in self.outputs:
            return self.graph.outputs[self.outputs.index(node)]
        taken = {port.name for port in (*self.graph.inputs, *self.graph.outputs)}
        return Value(f"{node.name}_value" if node.name in taken else node.name, type_of(node.meta["val"]))
