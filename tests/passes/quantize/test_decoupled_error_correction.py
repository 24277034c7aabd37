"""Corrections of channels against NumPy's least squares, and against rounding alone by the output of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.report import layer_errors
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.decoupled_error_correction import decoupled_error_correction
from diffc.passes.quantize.gptq import gptq
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, layer_of, plan_of, run, signal_to_noise
from tests.tolerances import CORRECTION_GAIN, GRAPH, HALF

SPECS = ("int4:channel", "uint4:channel", "int4:group=16", "int4:group=16:scale=uint4", "int4:channel:scale=float16")


class Network(nn.Module):
    """Apply convolutions with and without a bias and a linear layer, between which nothing is negative."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, stride=2, bias=False)
        self.last = nn.Linear(32, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply one after the other."""
        y = nn.functional.silu(self.second(nn.functional.silu(self.first(x))))
        return self.last(y.movedim(1, -1))


def pictures(seed: int, count: int = 6) -> list[Tensors]:
    """Draw pictures whose channels go together, brighter from step to step."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, 16, generator=torch.Generator().manual_seed(7))
    drawn = [torch.rand(2, 9, 9, 4, generator=random) * (1 + at / count) for at in range(count)]
    return [((x @ mixing).movedim(-1, 1).contiguous(),) for x in drawn]


def gain(plan: Plan) -> float:
    """Measure how much nearer the output for other pictures comes than without corrections, in dB."""
    wanted = run(plan.programs, pictures(2))
    made = [run(applied(each), pictures(2)) for each in (decoupled_error_correction(plan), round_to_nearest(plan))]
    return signal_to_noise(made[0], wanted) - signal_to_noise(made[1], wanted)


@pytest.mark.parametrize(
    ("weight", "activation", "allowed"),
    [
        ("int4:channel", "float", GRAPH),
        ("uint4:channel", "int8:token", GRAPH),
        ("int4:group=16", "uint8:tensor", GRAPH),
        ("int4:group=16:scale=uint4", "int8:token", HALF),
        ("int4:channel:scale=float16", "uint8:tensor", HALF),
    ],
)
def test_each_channel_is_what_least_squares_make_of_it(weight: str, activation: str, allowed: float) -> None:
    torch.manual_seed(0)
    module, feeds = nn.Linear(32, 24), [(torch.rand(40, 32) + at / 4,) for at in range(3)]
    plan = plan_of(module, feeds, weight, activation)
    wanted, rounded, found = (
        (torch.cat(run(programs, feeds)) - module.bias).numpy().astype(np.float64)
        for programs in (
            plan.programs,
            applied(round_to_nearest(calibrate_ranges(plan))),
            applied(decoupled_error_correction(plan)),
        )
    )
    lines = [np.polyfit(rounded[:, at], wanted[:, at], 1) for at in range(24)]
    by_hand = np.stack([factor * rounded[:, at] + term for at, (factor, term) in enumerate(lines)], 1)
    assert np.abs(found - by_hand).max() <= allowed * np.abs(by_hand).max()
    assert np.abs(rounded - by_hand).max() > 10 * allowed * np.abs(by_hand).max()


@pytest.mark.parametrize("spec", SPECS)
def test_the_output_is_nearer_than_by_rounding_alone(spec: str) -> None:
    assert gain(plan_of(Network(), pictures(1), spec, "uint8:tensor")) > CORRECTION_GAIN


def test_rows_without_scales_that_take_a_factor_are_shifted() -> None:
    plan = plan_of(Network(), pictures(1), "nvfp4")
    for layer, nearest in zip(decoupled_error_correction(plan).layers, round_to_nearest(plan).layers, strict=True):
        assert layer.rounded is not None and nearest.rounded is not None and layer.shift is not None
        assert torch.equal(layer.rounded.value(layer.scheme.weight), nearest.rounded.value(layer.scheme.weight))
    assert gain(plan) > CORRECTION_GAIN


def test_what_was_rounded_otherwise_is_corrected_beside_smoothing_and_a_branch() -> None:
    torch.manual_seed(3)
    plan = plan_of(Network(), pictures(1), "int4:channel")
    branch = {
        x.name: (torch.randn(2, x.matrix()[0].numel()) / 50, torch.randn(len(x.matrix()), 2)) for x in plan.layers
    }
    width = {x.name: x.matrix().shape[1] for x in plan.layers}
    plan = plan.mapped(lambda x: replace(x, smoothing=torch.rand(width[x.name]) + 0.5, branch=branch[x.name]))
    rounded = gptq(plan)
    corrected = decoupled_error_correction(rounded)
    assert all(
        torch.equal(a.rounded.quantized, b.rounded.quantized)
        for a, b in zip(rounded.layers, corrected.layers, strict=True)
    )
    wanted = run(plan.programs, pictures(2))
    made = [signal_to_noise(run(applied(each), pictures(2)), wanted) for each in (rounded, corrected)]
    assert made[1] > made[0]


def test_the_report_of_layers_counts_the_corrections() -> None:
    plan = plan_of(nn.Linear(32, 24), [(torch.rand(40, 32),)], "int3:channel")
    feeds = [sample.feeds for sample in plan.calibration.samples]
    corrected = decoupled_error_correction(plan)
    (error,) = layer_errors(corrected)
    assert error.sqnr == pytest.approx(signal_to_noise(run(applied(corrected), feeds), run(plan.programs, feeds)))


def test_a_channel_that_never_varies_is_shifted_to_what_it_is() -> None:
    module = nn.Linear(32, 24)
    feeds = [(torch.ones(10, 32),)]
    found = run(applied(decoupled_error_correction(plan_of(module, feeds, "int3:channel"))), feeds)
    assert (found[0] - module(feeds[0][0])).abs().max() <= GRAPH


def test_what_no_sample_reaches_is_rounded_only() -> None:
    layer = layer_of(decoupled_error_correction(plan_of(nn.Linear(32, 24), [(torch.rand(4, 32),)], "int4"), samples=0))
    assert layer.shift is None and layer.rounded is not None
