"""Which eight-bit float a layer gets: the one with the smaller error, by an exhaustive search of whole graphs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.apply_plan import applied
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.fp_quant import fp_quant
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, layer_of, plan_of, run, signal_to_noise

WIDTH = 48


def made(weights: float, inputs: float) -> tuple[nn.Module, list[Tensors]]:
    """Make a layer whose columns differ by decades, and inputs whose channels do, so that the products are alike."""
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, 64, bias=False)
    sizes = torch.pow(10.0, torch.linspace(-inputs, 0, WIDTH))
    with torch.no_grad():
        layer.weight.copy_(torch.randn(64, WIDTH) * torch.pow(10.0, torch.linspace(0, -weights, WIDTH)))
    return layer, [(torch.randn(64, WIDTH) * sizes,) for _ in range(2)]


@pytest.mark.parametrize("when", ["tensor", "token"])
@pytest.mark.parametrize(("weights", "inputs"), [(0.0, 0.0), (0.0, 3.0), (7.0, 7.0)])
def test_no_other_formats_are_better(weights: float, inputs: float, when: str) -> None:
    layer, feeds = made(weights, inputs)
    fidelity = {}
    for weight, activation in itertools.product(("e4m3", "e5m2"), repeat=2):
        plan = round_to_nearest(calibrate_ranges(plan_of(layer, feeds, f"{weight}:channel", f"{activation}:{when}")))
        fidelity[weight, activation] = signal_to_noise(run(applied(plan), feeds), run(plan.programs, feeds))
    scheme = layer_of(fp_quant(plan_of(layer, feeds, "e4m3:channel", f"e4m3:{when}"))).scheme
    assert scheme.weight is not None and scheme.activation is not None
    assert fidelity[scheme.weight.format.name, scheme.activation.format.name] == max(fidelity.values())


def test_four_bits_stay_as_they_are_beside_it() -> None:
    layer, feeds = made(7.0, 7.0)
    found = layer_of(fp_quant(plan_of(layer, feeds, "e2m1:group=16", "e4m3:token"))).scheme
    assert (str(found.weight), str(found.activation)) == ("e2m1:group=16", "e5m2:token")


def test_a_static_scale_has_its_range() -> None:
    layer, feeds = made(7.0, 7.0)
    found = layer_of(fp_quant(plan_of(layer, feeds, "e4m3:channel", "e4m3:tensor")))
    assert str(found.scheme.activation) == "e5m2:tensor"
    wanted = layer_of(calibrate_ranges(plan_of(layer, feeds, "e4m3:channel", "e5m2:tensor")))
    assert found.low is not None and wanted.low is not None and torch.equal(found.low, wanted.low)


def test_what_is_decided_or_no_float_of_eight_bits_stays() -> None:
    layer, feeds = made(7.0, 7.0)
    for weight, activation in (("int8:channel", "int8:token"), ("nvfp4", "nvfp4:dynamic"), ("float", "float")):
        plan = plan_of(layer, feeds, weight, activation)
        assert layer_of(fp_quant(plan)) is layer_of(plan)
    plan = plan_of(layer, feeds, "e4m3:channel", "e4m3:tensor")
    for decided in (calibrate_ranges(plan), round_to_nearest(plan)):
        assert layer_of(fp_quant(decided)) is layer_of(decided)


def test_an_unknown_method_is_refused() -> None:
    layer, feeds = made(0.0, 0.0)
    with pytest.raises(PassError, match="fp_quant: 'best' is no range method"):
        fp_quant(plan_of(layer, feeds, "e4m3:channel", "e4m3:tensor"), by="best")
