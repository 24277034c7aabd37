"""Rounding to nearest is the nearest number of the grid, and leaves alone what was decided before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.plan import Scheme
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, layer_of, plan_of

FEEDS: list[Tensors] = [(torch.zeros(2, 32),)]


def linear() -> nn.Linear:
    """Make a layer with an outlier in each row."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 24)
    with torch.no_grad():
        layer.weight[:, 5] *= 5
    return layer


def test_codes_are_the_nearest_and_scales_cover_the_largest() -> None:
    layer = linear()
    found = layer_of(round_to_nearest(plan_of(layer, FEEDS, "int4:channel"), by="minmax")).rounded
    assert found is not None
    scale = layer.weight.abs().amax(1) / 7
    assert torch.equal(found.scale, scale)
    assert torch.equal(found.quantized.float(), (layer.weight / scale[:, None]).round())


def test_the_least_error_is_smaller_than_that_of_covering_the_largest() -> None:
    layer = linear()
    errors = []
    for by in ("mse", "minmax"):
        planned = layer_of(round_to_nearest(plan_of(layer, FEEDS, "int4:channel"), by=by))
        assert planned.rounded is not None and planned.scheme.weight is not None
        errors.append((planned.rounded.value(planned.scheme.weight) - layer.weight).square().sum(1))
    assert (errors[0] <= errors[1]).all() and errors[0].sum() < errors[1].sum()


def test_what_smoothing_and_a_branch_leave_is_rounded() -> None:
    layer, smoothing = linear(), torch.linspace(0.5, 2, 32)
    branch = torch.randn(2, 32), torch.randn(24, 2)
    plan = plan_of(layer, FEEDS, "int8:channel")
    plan = plan.mapped(lambda each: replace(each, smoothing=smoothing, branch=branch))
    planned = layer_of(round_to_nearest(plan))
    assert planned.rounded is not None and planned.scheme.weight is not None
    wanted = layer.weight / smoothing - branch[1] @ branch[0]
    step = planned.rounded.scale[:, None]
    assert ((planned.rounded.value(planned.scheme.weight) - wanted).abs() <= 0.75 * step).float().mean() > 0.9


def test_layers_that_are_rounded_or_in_float_stay() -> None:
    plan = round_to_nearest(plan_of(linear(), FEEDS, "int4:channel"))
    assert layer_of(round_to_nearest(plan, by="minmax")) is layer_of(plan)
    in_float = plan_of(linear(), FEEDS, "float", "int8:tensor")
    assert layer_of(round_to_nearest(in_float)).rounded is None
    assert layer_of(in_float).scheme == Scheme(None, layer_of(in_float).scheme.activation)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(PassError, match="round_to_nearest: 'kl' is no range method of weights"):
        round_to_nearest(plan_of(linear(), FEEDS, "int4:channel"), by="kl")
