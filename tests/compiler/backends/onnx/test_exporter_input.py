"""The exporter is handed the captured graph itself, but for the type of scalars."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffc.compiler import capture
from diffc.compiler.backends.onnx.exporter_input import ExporterInput

aten = torch.ops.aten


class Clamps(nn.Module):
    """Clamp between an integer and a float, and then between two integers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(1, 1.5).clamp(0, 2) + 1


def test_scalars_are_floats_where_one_of_an_operator_is() -> None:
    clamps = Clamps()
    body = capture(lambda: clamps(torch.randn(2)), {"clamps": clamps}).graphs[0].body
    clamped = [node.args[1:] for node in ExporterInput.of(body).graph.nodes if node.target is aten.clamp.default]
    assert clamped == [(1.0, 1.5), (0, 2)]
    assert [type(bound) for bounds in clamped for bound in bounds] == [float, float, int, int]


def test_a_graph_of_operators_that_the_exporter_knows_is_not_traced_again() -> None:
    clamps = Clamps()
    copy = ExporterInput.of(capture(lambda: clamps(torch.randn(2)), {"clamps": clamps}).graphs[0].body)
    assert copy.run_decompositions({}) is copy
