"""Sizes and parts of a captured graph."""

from __future__ import annotations

import torch
from torch import nn

from diffc.compiler.graph.body import body_of, example_inputs, needed, size
from diffc.compiler.graph.export import export
from diffc.compiler.ir.program import Graph, Type, Value


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 4, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.b(self.a(x)), y.exp()


def graph() -> Graph:
    feeds = (torch.zeros(1, 2), torch.zeros(1, 3))
    ports = (Value("x"), Value("y"))
    return Graph("g", ports, (), export("g", Two().eval().requires_grad_(False), feeds), "g")


def test_size_counts_weights() -> None:
    assert size(graph()) == 2 * 3 + 3 + 3 * 4
    assert size(Graph("g", (), ())) == 0


def test_examples_have_the_types_of_their_ports() -> None:
    x, t = example_inputs([Value("x", Type("float16", (2, 3))), Value("t", Type("int64"))])
    assert (x.shape, x.dtype, t.shape, t.dtype) == ((2, 3), torch.float16, (), torch.int64)


def test_needed_stops_where_a_value_is_at_hand() -> None:
    nodes = {node.name: node for node in body_of(graph()).graph.nodes}
    first, second = (node for node in nodes.values() if node.target is torch.ops.aten.linear.default)
    everything = needed(first.graph, [second], [])
    assert {first, second, nodes["x"]} <= everything and nodes["y"] not in everything
    rest = needed(first.graph, [second], [first])
    assert first in rest and nodes["x"] not in rest
