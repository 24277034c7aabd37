"""Each technique says why it left a layer alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.refusals import UNREACHED, Refusal
from diffc.compiler.recipe import Pass, name_of
from diffc.passes.quantize import TECHNIQUES
from diffc.passes.quantize.gptq import gptq
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.passes.quantize.smoothquant import smoothquant
from tests.one_graph import plan_of


class Net(nn.Module):
    """Have layers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain, self.wide, self.rounded = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.grouped, self.words = nn.Conv1d(32, 64, 3, padding=1, groups=2), nn.Embedding(40, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply each."""
        x = self.rounded(self.wide(self.plain(x))) + self.words(torch.zeros(1, dtype=torch.long))
        return self.grouped(x.mT)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Quantize all but one layer, of which one is rounded already."""
    torch.manual_seed(1)
    whole = plan_of(Net(), [(torch.randn(1, 8, 32) * torch.linspace(0.1, 9, 32),)], "int8:channel", "int8:tensor")
    whole = whole.mapped(lambda layer: replace(layer, scheme=Scheme()), lambda layer: layer.name == "net.wide")
    table = Scheme(parse_spec("int8:channel"))
    whole = whole.mapped(lambda layer: replace(layer, scheme=table), lambda layer: layer.kind == "embedding")
    rounded = {layer.name: layer for layer in round_to_nearest(whole).layers}
    return whole.mapped(lambda layer: rounded[layer.name], lambda layer: layer.name == "net.rounded")


def reasons(plan: Plan, technique: Pass[Plan]) -> dict[str, str]:
    """Map the layers that a technique leaves alone to its reasons."""
    found = [refusal for refusal in technique(plan).refusals if refusal.technique == name_of(technique)]
    assert len({refusal.layer for refusal in found}) == len(found), "one reason a layer"
    return {refusal.layer.removeprefix("net."): refusal.reason for refusal in found}


def test_why_a_layer_is_not_smoothed(plan: Plan) -> None:
    assert reasons(plan, smoothquant) == {
        "wide": "its weight stays in float",
        "rounded": "its weight is rounded already",
        "grouped": "its convolution is grouped",
        "words": "it is embedding, not a linear layer or a convolution",
    }


def test_why_a_layer_is_not_rounded(plan: Plan) -> None:
    assert set(reasons(plan, gptq)) == {"wide", "rounded", "words"}
    unreached = replace(plan, calibration=replace(plan.calibration, samples=()))
    assert reasons(unreached, gptq)["plain"] == reasons(unreached, smoothquant)["plain"] == UNREACHED
    assert reasons(plan, round_to_nearest) == {
        "wide": "its weight stays in float",
        "rounded": "its weight is rounded already",
    }


def test_a_search_that_finds_nothing_better_says_so() -> None:
    module, x = nn.Linear(40, 64), torch.rand(50, 40).sign()
    with torch.no_grad():
        module.weight.sign_()
    even = plan_of(module, [(x,)], "int8:channel", "int8:tensor")
    assert list(reasons(even, smoothquant).values()) == [
        "no smoothing that was tried makes the error of its output smaller"
    ]


@pytest.mark.parametrize("name", sorted(TECHNIQUES.keys() - {"ptq4dm"}))
def test_a_layer_in_float_has_a_reason_of_every_technique(name: str, plan: Plan) -> None:
    in_float = plan.mapped(lambda layer: replace(layer, scheme=Scheme(), rounded=None))
    assert "plain" in reasons(in_float, TECHNIQUES[name])


def test_reasons_are_counted(plan: Plan) -> None:
    refused = replace(
        plan, refusals=tuple(Refusal("gptq", name, reason) for name, reason in zip("abc", "xyy", strict=True))
    )
    assert refused.reasons("gptq") == "2 layers: y; 1 layers: x" and refused.reasons("adaround") == ""
