"""Multiply-adds and parameters by stage, counted by hand for a tiny denoiser."""

from __future__ import annotations

import torch
from torch import fx, nn

from diffc.compiler.analysis.stages import BUILD, LATENT, REQUEST, STEP
from diffc.compiler.analysis.work import multiply_adds, work_of_graph
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.ir.program import Graph, Value


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.text, self.mix = nn.Linear(2, 3), nn.Linear(4, 3, bias=False), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.mix(x + self.time(time) + self.text(text))


FEEDS = (torch.zeros(7, 3), torch.zeros(1, 2), torch.zeros(1, 4))


def graph() -> Graph:
    body = export("unet", Denoiser().eval().requires_grad_(False), FEEDS)
    ports = tuple(Value(name, type_of(x)) for name, x in zip(("x", "time", "text"), FEEDS, strict=True))
    return Graph("unet", ports, (Value("y"),), body, "unet")


def test_counts_by_the_stage_that_needs_a_value_first() -> None:
    work = work_of_graph(graph(), {"x": LATENT, "time": STEP, "text": REQUEST})
    assert work.parameters == {"step": 2 * 3 + 3, "request": 4 * 3, "request_step": 0, "latent": 3 * 5 + 5}
    assert work.multiply_adds == {"step": 2 * 3, "request": 4 * 3, "request_step": 0, "latent": 7 * 3 * 5}


def test_what_is_known_at_build_counts_for_no_stage() -> None:
    work = work_of_graph(graph(), {"x": LATENT, "time": BUILD, "text": BUILD})
    assert work.parameters == {"step": 0, "request": 0, "request_step": 0, "latent": 3 * 5 + 5}
    assert sum(work.multiply_adds.values()) == 7 * 3 * 5


def test_a_sum_multiplies_nothing() -> None:
    nodes = [node for node in body_of(graph()).graph.nodes if node.op == "call_function"]
    counts = {str(node.target): multiply_adds(node) for node in nodes}
    assert counts["aten.add.Tensor"] == 0 and counts["aten.linear.default"] > 0


def test_a_region_that_is_no_operator_counts_nothing() -> None:
    graph = fx.Graph()
    region, x = graph.get_attr("region"), graph.placeholder("x")
    node = graph.call_function(torch.ops.higher_order.wrap_with_autocast, ("cpu", None, False, None, region, x))
    assert multiply_adds(node) == 0
