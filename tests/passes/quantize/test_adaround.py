"""AdaRound by layers and by blocks, against rounding to nearest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import parse_spec
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.scales import weight_scales
from diffc.passes.quantize.adaround import adaround
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, plan_of, run, signal_to_noise
from tests.tolerances import ADAROUND_GAIN

WIDTH = 32


class Residual(nn.Module):
    """Add what a convolution and a linear layer make of the input to it, and end with a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the sum, through the last layer."""
        y = self.linear(torch.relu(self.conv(x)).movedim(1, -1)).movedim(-1, 1)
        return self.last(x + y)


def feeds() -> list[Tensors]:
    """Draw pictures whose channels go together."""
    torch.manual_seed(1)
    mixing = torch.randn(WIDTH // 4, WIDTH)
    return [((torch.randn(2, 6, 6, WIDTH // 4) @ mixing).movedim(-1, 1).contiguous(),) for _ in range(8)]


def gain(plan: Plan, by: str) -> float:
    """Measure how much nearer the output comes than by rounding to nearest, in dB."""
    wanted = run(plan.programs, feeds())
    learned, nearest = (
        signal_to_noise(run(applied(each), feeds()), wanted)
        for each in (adaround(plan, by=by, iterations=200, rate=0.1), round_to_nearest(plan))
    )
    return learned - nearest


@pytest.mark.parametrize("by", ["layer", "block"])
@pytest.mark.parametrize("spec", ["int4:channel", "uint4:group=16", "nvfp4"])
def test_the_output_is_nearer_than_that_of_rounding_to_nearest(by: str, spec: str) -> None:
    assert gain(plan_of(Residual(), feeds(), spec), by) > ADAROUND_GAIN


@pytest.mark.parametrize("by", ["layer", "block"])
def test_the_output_beside_smoothing_and_a_branch_is_nearer_than_by_rounding_to_nearest(by: str) -> None:
    torch.manual_seed(2)
    plan = plan_of(Residual(), feeds(), "int4:channel")
    branches = {
        layer.name: (torch.randn(2, layer.matrix()[0].numel()) / 50, torch.randn(WIDTH, 2) / 4) for layer in plan.layers
    }
    plan = plan.mapped(lambda each: replace(each, smoothing=torch.rand(WIDTH) + 0.5, branch=branches[each.name]))
    assert gain(plan, by) > ADAROUND_GAIN


def test_codes_are_beside_the_weights_and_scales_as_without_it() -> None:
    plan, spec = plan_of(Residual(), feeds(), "int4:channel"), parse_spec("int4:channel")
    assert spec is not None
    for layer in adaround(plan, by="block", iterations=50).layers:
        assert layer.rounded is not None
        nearest = weight_scales(layer.matrix(), spec, "mse")
        assert torch.equal(layer.rounded.scale, nearest.scale)
        assert (
            float((spec.format.decode(layer.rounded.quantized) - spec.format.decode(nearest.quantized)).abs().max())
            == 1.0
        )


def test_the_same_plan_gives_the_same_codes() -> None:
    plan = plan_of(Residual(), feeds(), "int4:channel")
    one, again = (adaround(plan, by="block", iterations=20) for _ in range(2))
    assert all(
        torch.equal(a.rounded.quantized, b.rounded.quantized) for a, b in zip(one.layers, again.layers, strict=True)
    )


def test_layers_that_are_rounded_or_that_no_sample_reaches_stay() -> None:
    plan = plan_of(Residual(), feeds(), "int4:channel")
    nearest = round_to_nearest(plan)
    assert adaround(nearest, by="block").layers == nearest.layers
    assert [layer.rounded for layer in adaround(plan, by="block", samples=0).layers] == [None] * 3


def test_what_cannot_be_reconstructed_is_refused() -> None:
    with pytest.raises(PassError, match="adaround: 'net' is no part to reconstruct"):
        adaround(plan_of(Residual(), feeds(), "int4:channel"), by="net")
