"""A plan whose parts do not fit is refused with the layer and the rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.errors import VerifyError
from diffc.compiler.graph.export import type_of
from diffc.compiler.ir.program import Op, Program, Ref, Type, Value
from diffc.compiler.quantization.formats import Scheme
from diffc.compiler.quantization.layer import Layer, Site
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.verify_plan import verify_plan
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.passes.quantize.smoothquant import smoothquant
from diffc.passes.quantize.svdquant import svdquant
from tests.one_graph import Tensors, plan_of


@pytest.fixture(scope="module", params=["linear", "conv"])
def plan(request: pytest.FixtureRequest) -> Plan:
    """Quantize a layer with all that a layer may have."""
    torch.manual_seed(0)
    module = nn.Linear(24, 32) if request.param == "linear" else nn.Conv2d(24, 32, 3)
    feeds = [(torch.randn(2, 24) if request.param == "linear" else torch.randn(1, 24, 5, 5),)]
    whole = svdquant(smoothquant(plan_of(module, feeds, "int8:channel", "int8:tensor"), alpha=0.5))
    whole = round_to_nearest(calibrate_ranges(whole))
    return replace(whole.mapped(lambda layer: replace(layer, shift=torch.zeros(32))), programs=legal(whole, feeds))


def legal(plan: Plan, feeds: list[Tensors]) -> tuple[Program, ...]:
    """Give the program a noise to call its graph with, and a result."""
    ((x,),) = feeds
    given, result = Value("x", type_of(x)), Value("y", Type("float32", (1,)))
    (graph,) = plan.programs[0].graphs
    graph = replace(graph, outputs=(result,))
    ops = (Op("noise", results=(given,)), Op("net", attrs=(("x0", Ref("x")),), results=(result,)))
    return (Program("main", graphs=(graph,), ops=ops, outputs=("y",)),)


def test_a_plan_is_returned(plan: Plan) -> None:
    (layer,) = plan.layers
    assert layer.smoothing is not None and layer.branch is not None and layer.rounded is not None
    assert verify_plan(plan) is plan


def broken(layer: Layer) -> dict[str, Layer]:
    """Break each rule for a layer by itself."""
    assert layer.rounded is not None and layer.branch is not None and layer.low is not None
    down, up = layer.branch
    return {
        "the graph other is in no program": replace(layer, sites=(Site("other", "n"),)),
        "its rounded weight is not one of its scheme and shape": replace(layer, scheme=Scheme()),
        "its ranges do not have a low and a high end": replace(layer, high=None),
        "its smoothing factors are not one for each input channel": replace(layer, smoothing=torch.ones(32)),
        "its low-rank branch is not of its weight's shape": replace(layer, branch=(down, up[:, 1:])),
        "its shift is not one value for each output channel": replace(layer, shift=torch.ones(24)),
    }


def test_each_rule_names_the_layer(plan: Plan) -> None:
    (layer,) = plan.layers
    for rule, changed in broken(layer).items():
        with pytest.raises(VerifyError) as refused:
            verify_plan(replace(plan, layers=(changed,)))
        assert (refused.value.what, refused.value.where) == (rule, layer.name)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda plan: replace(plan, layers=plan.layers * 2), "there are 2 layers of this name"),
        (lambda plan: plan.mapped(lambda x: replace(x, low=x.high, high=x.low)), "its ranges do not have a low"),
        (lambda plan: replace(plan, programs=(replace(plan.programs[0], outputs=("z",)),)), "returns z"),
        (
            lambda plan: replace(
                plan,
                calibration=replace(plan.calibration, samples=(replace(plan.calibration.samples[0], graph="other"),)),
            ),
            "a calibration sample of the graph other",
        ),
    ],
)
def test_each_rule_of_a_whole_plan_is_checked(plan: Plan, change: Callable[[Plan], Plan], what: str) -> None:
    with pytest.raises(VerifyError, match=what):
        verify_plan(change(plan))
