"""The branch against NumPy's singular values, and the error that it leaves for few bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.scales import weight_scales
from diffc.passes.quantize.gptq import gptq
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.passes.quantize.smoothquant import smoothquant
from diffc.passes.quantize.svdquant import svdquant
from tests.one_graph import Tensors, layer_of, plan_of, run, signal_to_noise
from tests.tolerances import BRANCH, BRANCH_GAIN

Made = Callable[[], tuple[nn.Module, list[Tensors]]]


def outliers(*shape: int, axis: int = -1) -> list[Tensors]:
    """Draw inputs of which each tenth channel is twenty times as large."""
    torch.manual_seed(1)
    size = torch.ones(shape[axis])
    size[::10] = 20.0
    return [((torch.randn(*shape).movedim(axis, -1) * size).movedim(-1, axis).contiguous(),) for _ in range(4)]


def matrix() -> tuple[nn.Module, list[Tensors]]:
    """Make a linear layer and inputs for it."""
    torch.manual_seed(0)
    return nn.Linear(160, 192), outliers(2, 50, 160)


def convolution() -> tuple[nn.Module, list[Tensors]]:
    """Make a convolution whose weights are distributed as trained ones are, and inputs for it."""
    torch.manual_seed(0)
    layer = nn.Conv2d(40, 96, 3, 2, padding=1)
    nn.init.normal_(layer.weight)
    return layer, outliers(1, 40, 16, 16, axis=1)


def fidelity(plan: Plan, feeds: list[Tensors]) -> float:
    """Measure the output of a rounded plan in dB."""
    return signal_to_noise(run(applied(plan), feeds), run(plan.programs, feeds))


@pytest.mark.parametrize("made", [matrix, convolution])
def test_what_remains_is_what_the_best_of_that_rank_leaves(made: Made) -> None:
    layer, feeds = made()
    plan = smoothquant(plan_of(layer, feeds, "int4:channel", "int8:tensor:dynamic"), alpha=0.5)
    found = layer_of(svdquant(plan, rank=8))
    assert found.branch is not None
    down, up = found.branch
    whole = layer_of(plan).matrix().flatten(1).double().numpy()
    assert (down.shape, up.shape) == ((8, whole.shape[1]), (len(whole), 8))
    best = np.sqrt((np.linalg.svd(whole, compute_uv=False)[8:] ** 2).sum())
    assert np.linalg.norm(found.matrix().flatten(1).numpy()) < best * (1 + BRANCH)
    assert torch.equal(down, down.half().float()) and torch.equal(up, up.half().float())


@pytest.mark.parametrize(
    ("weight", "activation"), [("int4:group=32", "int4:group=32:dynamic"), ("nvfp4", "nvfp4:dynamic")]
)
def test_four_bits_are_better_than_without_a_branch(weight: str, activation: str) -> None:
    layer, feeds = matrix()
    plan = plan_of(layer, feeds, weight, activation)
    without = fidelity(round_to_nearest(smoothquant(plan)), feeds)
    assert fidelity(round_to_nearest(svdquant(plan, rank=32)), feeds) > without + BRANCH_GAIN


def test_a_convolution_of_four_bits_is_better_than_without_a_branch() -> None:
    layer, feeds = convolution()
    plan = plan_of(layer, feeds, "int4:channel", "int8:tensor:dynamic")
    without = fidelity(round_to_nearest(smoothquant(plan)), feeds)
    assert fidelity(round_to_nearest(svdquant(plan, rank=24, room=2.0)), feeds) > without + BRANCH_GAIN


def test_gptq_rounds_what_the_branch_leaves() -> None:
    layer, feeds = matrix()
    plan = svdquant(plan_of(layer, feeds, "int4:group=32", "int4:group=32:dynamic"))
    rounded = layer_of(gptq(plan)).rounded
    assert rounded is not None and rounded.quantized.shape == (192, 160)
    assert fidelity(gptq(plan), feeds) > fidelity(round_to_nearest(plan), feeds)


def test_fitting_again_to_what_rounding_leaves_is_no_worse() -> None:
    layer, feeds = matrix()
    plan = smoothquant(plan_of(layer, feeds, "int4:group=32", "float"))
    errors = list[float]()
    for iterations in (0, 5):
        found = layer_of(svdquant(plan, rank=16, iterations=iterations))
        assert found.scheme.weight is not None
        rest = found.matrix()
        errors.append(
            float((weight_scales(rest, found.scheme.weight, "minmax").value(found.scheme.weight) - rest).norm())
        )
    assert errors[1] < errors[0]


@pytest.mark.parametrize(("room", "rank"), [(0.5, 2), (10.0, 5)])
def test_small_layers_are_not_eaten(room: float, rank: int) -> None:
    plan = plan_of(nn.Linear(160, 20), outliers(2, 50, 160), "int4:channel", "int8:token")
    found = layer_of(svdquant(plan, room=room))
    assert found.branch is not None and found.branch[0].shape == (rank, 160)
    taken, rounded = sum(factor.numel() for factor in found.branch) * 16, 160 * 20 * 4
    assert taken <= room * rounded


def test_a_large_convolution_takes_seconds_and_is_always_the_same() -> None:
    torch.manual_seed(0)
    feeds: list[Tensors] = [(torch.randn(1, 640, 2, 2),)]
    plan = plan_of(nn.Conv2d(640, 640, 3, padding=1), feeds, "int4:channel")
    start = time.monotonic()
    first = layer_of(svdquant(plan)).branch
    assert time.monotonic() - start < 10
    torch.randn(1)
    again = layer_of(svdquant(plan)).branch
    assert first is not None and again is not None
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_is_decided_or_in_float_stays() -> None:
    layer, feeds = matrix()
    plan = plan_of(layer, feeds, "int4:channel", "int8:token")
    for decided in (round_to_nearest(plan), svdquant(plan, rank=4), plan_of(layer, feeds, "float", "int8:token")):
        assert layer_of(svdquant(decided)) is layer_of(decided)
    grouped = plan_of(nn.Conv2d(40, 80, 3, groups=2), outliers(1, 40, 8, 8, axis=1), "int4:channel")
    assert layer_of(svdquant(grouped)).branch is None
    smoothed = plan.mapped(lambda each: replace(each, smoothing=torch.full((160,), 2.0)))
    assert layer_of(svdquant(smoothed)).smoothing is layer_of(smoothed).smoothing


def test_a_rank_of_zero_is_refused() -> None:
    layer, feeds = matrix()
    with pytest.raises(PassError, match="svdquant: the rank is 0"):
        svdquant(plan_of(layer, feeds, "int4:channel"), rank=0)
