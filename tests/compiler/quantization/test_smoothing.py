"""Factors of SmoothQuant's equation 4, and the search among them by the error of the output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.quantization.layer_error import layer_inputs
from diffc.compiler.quantization.smoothing import ALPHAS, factors, searched
from tests.one_graph import layer_of, plan_of

CHANNELS = 32


def case(outlier: float) -> tuple[nn.Linear, list[tuple[torch.Tensor]]]:
    random = torch.Generator().manual_seed(0)
    module = nn.Linear(CHANNELS, 32)
    module.weight.data = torch.randn(32, CHANNELS, generator=random)
    scale = torch.ones(CHANNELS)
    scale[3] = outlier
    return module, [(torch.randn(32, CHANNELS, generator=random) * scale,) for _ in range(2)]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_factors_are_those_of_the_paper_inverted(alpha: float) -> None:
    module, feeds = case(50.0)
    plan = plan_of(module, feeds, "int8:channel", "int8:tensor")
    ((layer, inputs),) = layer_inputs(plan, plan.layers, samples=2)
    [factor] = factors(layer, inputs, alpha)
    x = np.abs(np.concatenate([feed[0].numpy() for feed in feeds])).max(0)
    w = np.abs(module.weight.detach().numpy()).max(0)
    np.testing.assert_allclose(factor.numpy(), w ** (1 - alpha) / x**alpha, rtol=1e-3)  # stored in float16


def test_a_channel_that_is_always_zero_is_left_alone() -> None:
    module, feeds = case(0.0)
    plan = plan_of(module, feeds, "int8:channel", "int8:tensor")
    ((layer, inputs),) = layer_inputs(plan, plan.layers, samples=2)
    assert [float(factor[3]) for factor in factors(layer, inputs, *ALPHAS)] == [1.0] * len(ALPHAS)


def test_the_search_smooths_an_outlier() -> None:
    module, feeds = case(200.0)
    plan = plan_of(module, feeds, "int8:channel", "int8:tensor")
    ((layer, inputs),) = layer_inputs(plan, plan.layers, samples=2)
    assert layer_of(plan) == layer
    smoothing = searched(layer, inputs).smoothing
    assert smoothing is not None and int(smoothing.argmin()) == 3
