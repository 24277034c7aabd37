"""Watch what reaches the nodes of a graph in each recorded call."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from diffc.compiler.calibration.observe import watch
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.graph.body import body_of
from tests.one_graph import plan_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.exp())


def test_sees_operands_and_results_of_the_nodes_it_names() -> None:
    module, feeds = Net(), [(torch.full((1, 2), float(step)),) for step in range(3)]
    plan = plan_of(module, feeds, "int8:channel")
    (graph,) = plan.graphs.values()
    linear = next(node.name for node in body_of(graph).graph.nodes if node.target is torch.ops.aten.linear.default)
    seen = list[tuple[int, list[bool]]]()

    def visit(node: fx.Node, operands: tuple[Any, ...], result: Any, sample: Sample) -> None:
        x, missing = operands
        expected = feeds[sample.step][0].exp()
        close = [torch.allclose(x, expected), torch.allclose(result, module.layer(expected), atol=1e-6)]
        seen.append((sample.step, [*close, node.name == linear, missing is None]))

    watch(graph, plan.calibration.of(graph), {linear: (0, 7)}, visit)
    assert seen == [(step, [True] * 4) for step in range(3)]
