"""Decide which values of a captured graph are computed before the loop, and so where it is cut."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from diffc.compiler.analysis.stages import (
    LATENT,
    REQUEST,
    Stage,
    calls,
    known,
    name_of,
    stages_of_nodes,
    stages_of_ports,
)
from diffc.compiler.analysis.work import multiply_adds
from diffc.compiler.errors import DiffcWarning
from diffc.compiler.graph.aten import Trait, has
from diffc.compiler.graph.body import body_of, needed
from diffc.compiler.graph.symbolic import elements, is_open
from diffc.compiler.ir.program import Graph, Literal, Program, Type, Value
from diffc.runtime.program.size import AnySize

FREE_BYTES = 64 << 20
"""Bytes that are hoisted in any case; more are hoisted only where they replace as many bytes of weights."""

EARLY = ("build", "step", "request", "request_step")

Row = tuple[tuple[str, Literal], ...]
"""The literals, by port, that are known at build and differ between calls."""


@dataclass(frozen=True)
class Cut:
    """Hold the nodes of a graph that are computed before the loop, by the name of their stage."""

    graph: Graph
    body: fx.GraphModule
    ports: Mapping[str, Stage]
    rows: tuple[Row, ...]
    stages: Mapping[fx.Node, Stage]
    hoisted: Mapping[str, list[fx.Node]]

    @staticmethod
    def of(graph: Graph, programs: Sequence[Program]) -> Cut:
        """Walk from the outputs to the inputs, and stop at each value that is known early and worth hoisting."""
        body, ports = body_of(graph), _ports(graph, programs)
        rows = dict.fromkeys(known(op, ports) for program in programs for op in calls(program, graph))
        stages = stages_of_nodes(body, graph, ports)
        cut = Cut(graph, body, ports, tuple(rows), stages, {name: [] for name in EARLY})
        if all("latent" not in stage for stage in stages.values()):
            return cut
        worth, needed_late = _Worth(cut), {body.graph.output_node()}
        for node in reversed(body.graph.nodes):
            if node not in needed_late or node.op in ("placeholder", "get_attr"):
                continue
            if node.op == "call_function" and "latent" not in stages[node] and worth(node):
                cut.hoisted[name_of(stages[node])].insert(0, node)
            else:
                needed_late.update(node.all_input_nodes)
        if worth.too_large:
            node, size = max(worth.too_large.items(), key=lambda item: item[1])
            what = f"{node.name} in each of {len(rows)} steps: a table of it would take {size / 1e6:.0f} MB"
            warnings.warn(f"{graph.name} computes {what}", DiffcWarning, stacklevel=2)
        return cut

    @cached_property
    def open_sizes(self) -> Mapping[Any, AnySize]:
        """Map the open sizes of the body's ports, as expressions of its symbols, to those of the graph's."""
        pairs = (
            (symbol, size)
            for port in self.graph.inputs
            if port.type.lengths
            for symbol, size in zip(self.node(port).meta["val"].shape, port.type.shape, strict=True)
        )
        return {symbol.node.expr: size for symbol, size in pairs if isinstance(symbol, torch.SymInt)}

    def open_type(self, node: fx.Node) -> Type | None:
        """Return the type of a value of open sizes; None where they are not those of ports."""
        value = node.meta["val"]
        sizes = [self.open_sizes.get(n.node.expr) if isinstance(n, torch.SymInt) else n for n in value.shape]
        named = tuple(size for size in sizes if size is not None)
        return Type(str(value.dtype).removeprefix("torch."), named) if len(named) == len(sizes) else None

    def node(self, port: Value) -> fx.Node:
        """Find the placeholder of a port."""
        placeholders: list[fx.Node] = self.body.graph.find_nodes(op="placeholder")
        return placeholders[[each.name for each in self.graph.inputs].index(port.name)]

    def ports_of(self, nodes: Iterable[fx.Node], stops: Iterable[fx.Node] = ()) -> list[Value]:
        """List the ports that nodes are computed from down to the nodes in ``stops``."""
        nodes_needed = needed(self.body.graph, nodes, stops)
        return [port for port in self.graph.inputs if self.node(port) in nodes_needed]


class _Worth:
    """Decide which early values are worth keeping.

    Views are not: their bases are kept instead. Nor are values of an open size, unless the request alone decides them
    and a port has that size. Nor are values larger than all of their sources, unless keeping them saves multiply-adds.
    A value that depends on the request takes memory in every run, and must save at least one multiply-add for each of
    its elements.
    """

    def __init__(self, cut: Cut) -> None:
        self.cut, self.stages, self.rows = cut, cut.stages, len(cut.rows)
        self.work: dict[fx.Node, int] = {}
        self.weights: dict[fx.Node, frozenset[fx.Node]] = {}
        self.too_large: dict[fx.Node, int] = {}
        for node, stage in cut.stages.items():
            if "latent" in stage:
                continue
            sources = node.all_input_nodes
            own = multiply_adds(node) if "request" in stage else 0
            self.work[node] = own + max((self.work[source] for source in sources), default=0)
            self.weights[node] = frozenset((node,) if node.op == "get_attr" else ()).union(
                *(self.weights[source] for source in sources)
            )

    def __call__(self, node: fx.Node) -> bool:
        value, stage, size = node.meta.get("val"), self.stages[node], self.size(node)
        if not isinstance(value, torch.Tensor) or _looks(node):
            return False
        if is_open(value) and (stage != REQUEST or self.cut.open_type(node) is None):
            return False
        if size > sum(map(self.size, node.all_input_nodes)) and not multiply_adds(node):
            return False
        if "request" in stage and self.work[node] < elements(value):
            return False
        if size > max(FREE_BYTES, sum(map(_bytes, self.weights[node]))):
            self.too_large[node] = size
            return False
        return True

    def size(self, node: fx.Node) -> int:
        """Count the bytes that keeping a value takes: once, or for every step."""
        return _bytes(node) * (self.rows if "step" in self.stages[node] else 1)


def _ports(graph: Graph, programs: Sequence[Program]) -> Mapping[str, Stage]:
    """Find the stages of the ports; values that a program computes for most calls anew count as latent."""
    ports = stages_of_ports(graph, programs)
    for program in programs:
        called = calls(program, graph)
        for port, stage in ports.items():
            if stage == REQUEST and len({op.attr(port) for op in called}) > max(2, len(called) // 2):
                ports[port] = LATENT
    return ports


def _looks(node: fx.Node) -> bool:
    return node.target is operator.getitem or has(node.target, Trait.VIEW)


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    tensors = value if isinstance(value, list | tuple) else [value]
    return sum(elements(t) * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
