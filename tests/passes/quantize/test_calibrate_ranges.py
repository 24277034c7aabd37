"""Ranges are those of what the samples show: of all steps, of each, of every input and of the output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.plan import Plan
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from tests.one_graph import Tensors, layer_of, plan_of


def feeds(count: int = 4) -> list[Tensors]:
    """Draw inputs, each larger than the one before."""
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(200, 32, generator=random) * (step + 1),) for step in range(count)]


def linear() -> nn.Linear:
    """Make a layer."""
    torch.manual_seed(0)
    return nn.Linear(32, 24)


def ends(plan: Plan) -> list[tuple[float, float]]:
    """Give the ranges of the only layer's input."""
    layer = layer_of(plan)
    assert layer.low is not None and layer.high is not None and layer.low.shape == layer.high.shape
    return list(zip(layer.low[0].tolist(), layer.high[0].tolist(), strict=True))


def test_a_static_range_is_that_of_all_steps() -> None:
    found = ends(calibrate_ranges(plan_of(linear(), feeds(), "int8:channel", "uint8:tensor"), by="minmax"))
    x = torch.cat([x for (x,) in feeds()])
    assert found == [(float(x.min()), float(x.max()))]


def test_a_step_has_a_range_of_its_own() -> None:
    found = ends(calibrate_ranges(plan_of(linear(), feeds(), "int8:channel", "int8:tensor:step"), by="minmax"))
    assert found == [(float(x.min()), float(x.max())) for (x,) in feeds()]


@pytest.mark.parametrize("by", ["percentile", "mse", "kl"])
def test_other_ways_cut_off_an_outlier(by: str) -> None:
    given = [(torch.randn(1000, 32, generator=torch.Generator().manual_seed(1)),)]
    given[0][0][0, 0] = 30.0
    plan = plan_of(linear(), given, "int8:channel", "int4:tensor")
    ((low, high),), ((_, largest),) = ends(calibrate_ranges(plan, by=by)), ends(calibrate_ranges(plan, by="minmax"))
    assert largest == 30.0 and max(-low, high) < 0.5 * largest


def test_the_range_is_of_what_smoothing_leaves() -> None:
    plan = plan_of(linear(), feeds(), "int8:channel", "int8:tensor")
    plan = plan.mapped(lambda layer: replace(layer, smoothing=torch.full((32,), 0.25)))
    ((low, high),) = ends(calibrate_ranges(plan, by="minmax"))
    x = torch.cat([x for (x,) in feeds()]) / 4
    assert (low, high) == (float(x.min()), float(x.max()))


def test_an_output_has_bounds() -> None:
    layer = linear()
    plan = plan_of(layer, feeds(), "int8:channel").mapped(
        lambda each: replace(each, scheme=replace(each.scheme, output=parse_spec("uint8")))
    )
    found = layer_of(calibrate_ranges(plan, by="minmax"))
    made = torch.cat([layer(x) for (x,) in feeds()])
    assert found.bounds == pytest.approx((float(made.min()), float(made.max()))) and found.low is None


class Attention(nn.Module):
    """Attend with three inputs of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend."""
        return nn.functional.scaled_dot_product_attention(q, k, v) * self.weight


def test_attention_has_a_range_for_each_input() -> None:
    torch.manual_seed(0)
    given = [(torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8) * 3, torch.rand(1, 2, 5, 8))]
    for scheme in (Scheme(activation=parse_spec("int8:tensor")), Scheme(values=parse_spec("uint8:tensor"))):
        plan = plan_of(Attention(), given, "float").mapped(lambda layer, scheme=scheme: replace(layer, scheme=scheme))
        found = layer_of(calibrate_ranges(plan, by="minmax"))
        assert found.low is not None and found.high is not None
        assert found.low[:, 0].tolist() == [float(x.min()) for x in given[0]]
        assert found.high[:, 0].tolist() == [float(x.max()) for x in given[0]]


@pytest.mark.parametrize("activation", ["int8:token", "int8:tensor:dynamic", "int4:group=16:dynamic", "float"])
def test_what_needs_no_range_gets_none(activation: str) -> None:
    plan = plan_of(linear(), feeds(), "int8:channel", activation)
    assert layer_of(calibrate_ranges(plan)) is layer_of(plan)


def test_what_was_decided_stays() -> None:
    plan = calibrate_ranges(plan_of(linear(), feeds(), "int8:channel", "int8:tensor"), by="minmax")
    assert layer_of(calibrate_ranges(plan, by="kl")) is layer_of(plan)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(PassError, match="calibrate_ranges: 'max' is no range method"):
        calibrate_ranges(plan_of(linear(), feeds(), "int8:channel", "int8:tensor"), by="max")
    assert layer_of(plan_of(linear(), feeds(), "float")).scheme == Scheme()
