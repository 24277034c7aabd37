"""GPTQ against its definition in NumPy, and against rounding to nearest by the output of the layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import parse_spec
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.scales import weight_scales
from diffc.passes.quantize.gptq import gptq
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, layer_of, plan_of, run, signal_to_noise
from tests.tolerances import GPTQ_GAIN, GRAM

SPECS = (
    "int4:channel",
    "int4:tensor",
    "uint4:channel",
    "uint3:group=16",
    "int4:group=32",
    "int4:group=32:scale=uint4",
    "int4:group=32:scale=float16",
    "e4m3:channel",
    "nvfp4",
    "mxfp4",
)


def correlated(*shape: int, axis: int = -1, count: int = 4) -> list[Tensors]:
    """Draw inputs whose channels are mixtures of a few."""
    torch.manual_seed(1)
    channels = shape[axis]
    mixing = torch.randn(channels // 4, channels)
    drawn = [torch.randn(*shape).movedim(axis, -1)[..., : channels // 4] @ mixing for _ in range(count)]
    return [((x + 0.1 * torch.randn_like(x)).movedim(-1, axis).contiguous(),) for x in drawn]


def reference(weight: np.ndarray, gram: np.ndarray, scale: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Round int4 columns by optimal brain surgery, with the inverse of what is left at each column; return them."""
    weight, quantized, left = weight.copy(), np.zeros_like(weight), list(order)
    while left:
        inverse = np.linalg.inv(gram[np.ix_(left, left)])
        column = left[0]
        quantized[:, column] = np.clip(np.rint(weight[:, column] / scale), -8, 7)
        error = (weight[:, column] - quantized[:, column] * scale) / inverse[0, 0]
        weight[:, left] -= np.outer(error, inverse[0])
        left = left[1:]
    return quantized


@pytest.mark.parametrize("by_activation", [True, False])
def test_codes_are_those_of_optimal_brain_surgery(by_activation: bool) -> None:
    torch.manual_seed(0)
    layer, feeds = nn.Linear(160, 24), correlated(50, 160)
    plan = plan_of(layer, feeds, "int4:channel")
    rounded = layer_of(gptq(plan, by_activation=by_activation)).rounded
    assert rounded is not None
    x = torch.cat([x for (x,) in feeds]).double()
    gram = (x.T @ x / len(x)).numpy()
    gram += 0.01 * gram.diagonal().mean() * np.eye(160)
    order = np.argsort(-gram.diagonal()) if by_activation else np.arange(160)
    wanted = reference(layer.weight.double().numpy(), gram, rounded.scale.double().numpy(), order)
    assert (rounded.quantized.numpy() != wanted).mean() <= GRAM  # in float32 a tie may fall to the other side


@pytest.mark.parametrize("spec", SPECS)
def test_the_output_is_nearer_than_that_of_rounding_to_nearest(spec: str) -> None:
    torch.manual_seed(0)
    feeds = correlated(50, 64)
    plan = plan_of(nn.Linear(64, 48), feeds, spec)
    assert gain(plan, feeds) > GPTQ_GAIN


@pytest.mark.parametrize("options", [{}, {"groups": 4}, {"stride": 2, "dilation": 2}], ids=str)
def test_the_output_of_a_convolution_is_nearer_than_by_rounding_to_nearest(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    feeds = correlated(2, 32, 12, 12, axis=1)
    plan = plan_of(nn.Conv2d(32, 16, 3, padding=1, **options), feeds, "int4:channel")
    assert gain(plan, feeds) > GPTQ_GAIN


def gain(plan: Plan, feeds: list[Tensors]) -> float:
    """Measure how much nearer the output comes than by rounding to nearest, in dB."""
    wanted = run(plan.programs, feeds)
    made = [run(applied(quantized), feeds) for quantized in (gptq(plan), round_to_nearest(plan))]
    return signal_to_noise(made[0], wanted) - signal_to_noise(made[1], wanted)


@pytest.mark.parametrize("spec", SPECS)
def test_codes_are_numbers_of_the_grid_and_scales_as_without_it(spec: str) -> None:
    torch.manual_seed(0)
    plan = plan_of(nn.Linear(64, 48), correlated(50, 64), spec)
    rounded, form = layer_of(gptq(plan)).rounded, parse_spec(spec)
    assert rounded is not None and form is not None
    assert torch.equal(form.format.encode(form.format.decode(rounded.quantized)), rounded.quantized)
    assert torch.equal(rounded.scale, weight_scales(layer_of(plan).matrix(), form, "mse").scale)


def test_what_never_varies_does_no_harm() -> None:
    feeds = [(torch.cat([x, torch.zeros(50, 16)], 1),) for (x,) in correlated(50, 64)]
    layer = layer_of(gptq(plan_of(nn.Linear(80, 48), feeds, "int4:channel")))
    assert layer.rounded is not None and layer.rounded.scale.isfinite().all()


def test_what_remains_beside_smoothing_and_a_branch_is_rounded() -> None:
    torch.manual_seed(0)
    feeds, spec = correlated(50, 64), "int4:channel"
    plan = plan_of(nn.Linear(64, 48), feeds, spec)
    smoothing, branch = torch.rand(64) + 0.5, (torch.randn(4, 64), torch.randn(48, 4) / 16)
    plan = plan.mapped(lambda layer: replace(layer, smoothing=smoothing, branch=branch))
    assert gain(plan, feeds) > GPTQ_GAIN


def test_layers_that_are_rounded_or_that_no_sample_reaches_stay() -> None:
    plan = plan_of(nn.Linear(64, 48), correlated(50, 64), "int4:channel")
    nearest = round_to_nearest(plan)
    assert layer_of(gptq(nearest)).rounded is layer_of(nearest).rounded
    assert layer_of(gptq(plan, samples=0)).rounded is None


def test_damping_of_zero_is_refused() -> None:
    plan = plan_of(nn.Linear(64, 48), correlated(50, 64), "int4:channel")
    with pytest.raises(PassError, match="gptq: damping is 0"):
        gptq(plan, damping=0.0)
