"""SmoothQuant's factors against the paper's formula, that they change nothing in float, and what they are good for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.plan import Plan, Scheme
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.passes.quantize.smoothquant import smoothquant
from tests.one_graph import Tensors, layer_of, plan_of, run, signal_to_noise
from tests.tolerances import HALF, SEARCH_LOSS, SMOOTHING_GAIN

DEAD = 3

Made = Callable[[], tuple[nn.Module, list[Tensors]]]


def outliers(*shape: int, axis: int = -1, count: int = 4) -> list[Tensors]:
    """Draw inputs of which each tenth channel is forty times as large, and one is always zero."""
    torch.manual_seed(1)
    size = torch.ones(shape[axis])
    size[::10] = 40.0
    size[DEAD] = 0.0
    return [((torch.randn(*shape).movedim(axis, -1) * size).movedim(-1, axis).contiguous(),) for _ in range(count)]


def convolution() -> tuple[nn.Module, list[Tensors]]:
    """Make a convolution and inputs for it."""
    torch.manual_seed(0)
    return nn.Conv2d(20, 24, 3, 2, padding=1), outliers(1, 20, 10, 10, axis=1)


def matrix() -> tuple[nn.Module, list[Tensors]]:
    """Make a linear layer and inputs for it."""
    torch.manual_seed(0)
    return nn.Linear(40, 64), outliers(2, 30, 40)


def quantized(plan: Plan, feeds: list[Tensors]) -> float:
    """Round to nearest, and measure the output in dB."""
    return signal_to_noise(run(applied(round_to_nearest(calibrate_ranges(plan))), feeds), run(plan.programs, feeds))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("made", [matrix, convolution])
def test_factors_are_those_of_equation_4(made: Made, alpha: float) -> None:
    layer, feeds = made()
    found = layer_of(smoothquant(plan_of(layer, feeds, "int8:channel", "int8:tensor"), alpha=alpha)).smoothing
    assert found is not None
    x = np.stack([np.asarray(x) for (x,) in feeds])
    axis = 2 if x.ndim == 5 else x.ndim - 1
    inputs = np.abs(x).max(tuple(n for n in range(x.ndim) if n != axis))
    weights = np.abs(layer.weight.numpy()).max((0, *range(2, layer.weight.dim())))
    alive = np.arange(len(inputs)) != DEAD
    wanted = weights[alive] ** (1 - alpha) / inputs[alive] ** alpha
    assert np.abs(found.numpy()[alive] / wanted - 1).max() < HALF
    assert found[DEAD] == 1


@pytest.mark.parametrize("made", [matrix, convolution])
def test_nothing_changes_before_something_is_rounded(made: Made) -> None:
    layer, feeds = made()
    plan = smoothquant(plan_of(layer, feeds, "int8:channel", "int8:tensor"), alpha=0.5)
    balanced = layer_of(plan)
    assert balanced.smoothing is not None
    shape = (-1, 1, 1) if balanced.kind == "conv" else (-1,)
    wanted = torch.cat(run(plan.programs, feeds))
    with torch.no_grad():
        layer.weight.copy_(balanced.matrix())
        found = torch.cat([layer(x * balanced.smoothing.reshape(shape)) for (x,) in feeds])
    assert (found - wanted).abs().max() < HALF * wanted.abs().max()


@pytest.mark.parametrize("activation", ["int8:tensor", "int8:tensor:dynamic", "uint8:tensor"])
@pytest.mark.parametrize("made", [matrix, convolution])
def test_outliers_are_rounded_better(made: Made, activation: str) -> None:
    layer, feeds = made()
    plan = plan_of(layer, feeds, "int8:channel", activation)
    assert quantized(smoothquant(plan, alpha=0.5), feeds) > quantized(plan, feeds) + SEARCH_LOSS, SMOOTHING_GAIN


@pytest.mark.parametrize("activation", ["int8:token", "int4:group=20:dynamic", "e4m3:token"])
def test_a_search_finds_what_is_as_good_as_any(activation: str) -> None:
    layer, feeds = matrix()
    plan = plan_of(layer, feeds, "int4:channel", activation)
    each = [quantized(smoothquant(plan, alpha=alpha), feeds) for alpha in (0.2, 0.5, 0.8)]
    assert quantized(smoothquant(plan), feeds) > max(quantized(plan, feeds), *each) - SEARCH_LOSS
    assert quantized(smoothquant(plan), feeds) > quantized(plan, feeds)


def test_a_search_leaves_alone_what_it_makes_no_better() -> None:
    torch.manual_seed(0)
    layer, feeds = nn.Linear(40, 64), [(torch.rand(50, 40).sign(),)]
    with torch.no_grad():
        layer.weight.sign_()
    assert layer_of(smoothquant(plan_of(layer, feeds, "int8:channel", "int8:tensor"))).smoothing is None


def test_what_is_decided_or_in_float_stays() -> None:
    layer, feeds = matrix()
    plan = plan_of(layer, feeds, "int8:channel", "int8:tensor")
    for decided in (calibrate_ranges(plan), round_to_nearest(plan), smoothquant(plan, alpha=0.3)):
        assert layer_of(smoothquant(decided, alpha=0.5)) is layer_of(decided)
    in_float = plan.mapped(lambda each: replace(each, scheme=Scheme(each.scheme.weight)))
    assert layer_of(smoothquant(in_float, alpha=0.5)).smoothing is None
    grouped = plan_of(nn.Conv2d(20, 40, 3, groups=2), outliers(1, 20, 10, 10, axis=1), "int8:channel", "int8:tensor")
    assert layer_of(smoothquant(grouped, alpha=0.5)).smoothing is None


def test_an_alpha_out_of_range_is_refused() -> None:
    layer, feeds = matrix()
    with pytest.raises(PassError, match=r"smoothquant: alpha is 1\.5"):
        smoothquant(plan_of(layer, feeds, "int8:channel", "int8:tensor"), alpha=1.5)
