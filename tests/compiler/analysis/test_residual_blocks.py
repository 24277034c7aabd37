"""Residual blocks of small graphs: which sums end one, and which do not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from diffc.compiler.analysis.residual_blocks import regions

aten = torch.ops.aten


def blocks(build: Callable[[fx.Graph, fx.Node], fx.Node]) -> list[tuple[list[str], str]]:
    """List the nodes of each block and the end of its longer path; every ``relu`` is a layer."""
    graph = fx.Graph()
    graph.output(build(graph, graph.placeholder("x")))
    flow = [node for node in fx.GraphModule(nn.Module(), graph).graph.nodes if node.op != "output"]
    layers = {node.name for node in flow if node.target is aten.relu.default}
    return [([node.name for node in nodes], end.name) for nodes, end in regions(flow, layers)]


def layer(graph: fx.Graph, x: fx.Node, name: str) -> fx.Node:
    return graph.create_node("call_function", aten.relu.default, (x,), {}, name)


def add(graph: fx.Graph, a: fx.Node, b: fx.Node, name: str) -> fx.Node:
    return graph.create_node("call_function", aten.add.Tensor, (a, b), {}, name)


def test_a_block_is_the_sum_of_a_value_and_of_layers_on_it() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return add(graph, x, layer(graph, layer(graph, x, "f"), "g"), "y")

    assert blocks(build) == [(["f", "g", "y"], "g")]


def test_a_shortcut_may_have_layers_but_fewer() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        long = layer(graph, layer(graph, x, "f"), "g")
        return add(graph, long, layer(graph, x, "s"), "y")

    assert blocks(build) == [(["f", "g", "s", "y"], "g")]


def test_two_paths_of_equal_length_are_no_block() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return add(graph, layer(graph, x, "f"), layer(graph, x, "g"), "y")

    assert blocks(build) == []


def test_of_nested_blocks_the_innermost_is_found_and_blocks_follow_each_other() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        inner = add(graph, x, layer(graph, x, "f"), "y")
        outer = add(graph, x, layer(graph, inner, "g"), "z")
        return add(graph, outer, layer(graph, outer, "h"), "w")

    assert blocks(build) == [(["f", "y"], "f"), (["h", "w"], "h")]
