"""One scale for all tokens where they are of a size, and one for each where they are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffc.compiler.errors import PassError
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.static_scales import static_scales
from tests.one_graph import Tensors, layer_of, plan_of

STEPS = 6


def tokens(spread: float) -> list[Tensors]:
    """Draw tokens, the last ``spread`` times as large as the first."""
    torch.manual_seed(0)
    return [(torch.randn(64, 32) * torch.logspace(0, 1, 64, base=spread)[:, None],) for _ in range(STEPS)]


def activation(spread: float, spec: str = "int8:token", **options: float) -> str:
    plan = plan_of(nn.Linear(32, 16), tokens(spread), "int8:channel", spec)
    return str(layer_of(static_scales(plan, **options)).scheme.activation)


def test_tokens_of_a_size_share_a_scale() -> None:
    plan = plan_of(nn.Linear(32, 16), tokens(1.0), "int8:channel", "int8:token")
    static = plan_of(nn.Linear(32, 16), tokens(1.0), "int8:channel", "uint8:tensor")
    layer, wanted = layer_of(static_scales(plan)), layer_of(calibrate_ranges(static))
    assert (layer.scheme, layer.low, layer.high) == (wanted.scheme, wanted.low, wanted.high)


def test_tokens_of_many_sizes_keep_their_own() -> None:
    assert activation(1000.0) == "int8:token"


def test_how_much_may_be_lost_is_asked_for() -> None:
    assert activation(1000.0, loss=60.0) == "uint8:tensor"
    assert activation(1.0, loss=-20.0) == "int8:token"


@pytest.mark.parametrize("spec", ["float", "uint8:tensor", "int8:tensor:step", "e4m3:token"])
def test_other_layers_keep_their_scheme_and_have_their_range(spec: str) -> None:
    assert activation(1.0, spec) == ("None" if spec == "float" else spec)
    plan = plan_of(nn.Linear(32, 16), tokens(1.0), "int8:channel", spec)
    layer, wanted = layer_of(static_scales(plan, by="minmax")), layer_of(calibrate_ranges(plan, by="minmax"))
    assert str((layer.low, layer.high)) == str((wanted.low, wanted.high))
    assert (layer.low is None) is (spec in ("float", "e4m3:token"))


def test_an_unknown_way_to_choose_a_range_is_refused() -> None:
    with pytest.raises(PassError, match="'most' is no range method"):
        static_scales(plan_of(nn.Linear(32, 16), tokens(1.0), "int8:channel", "int8:token"), by="most")
