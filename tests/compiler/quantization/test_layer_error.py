"""The error that is measured on pieces of a layer's input is that of the whole quantized graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.layer_error import layer_inputs
from diffc.compiler.quantization.plan import Plan
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, layer_of, plan_of, run, signal_to_noise
from tests.tolerances import PIECES

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "matrix": (lambda: nn.Linear(48, 300, bias=False), (2, 200, 48)),
    "picture": (lambda: nn.Conv2d(16, 200, 3, stride=2, padding=1, bias=False), (2, 16, 40, 40)),
    "groups": (lambda: nn.Conv2d(16, 32, 3, groups=4, bias=False), (2, 16, 40, 40)),
    "film": (lambda: nn.Conv3d(16, 64, 3, bias=False), (1, 16, 8, 16, 16)),
    "sound": (lambda: nn.Conv1d(16, 64, 3, dilation=2, bias=False), (1, 16, 400)),
}


@pytest.mark.parametrize("activation", ["int4:tensor", "uint4:tensor", "int4:tensor:dynamic", "float"])
@pytest.mark.parametrize("kind", LAYERS)
def test_pieces_have_the_error_of_the_whole(kind: str, activation: str) -> None:
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    module = make()
    feeds: list[Tensors] = [(torch.randn(shape).clamp(-2, 2),) for _ in range(4)]
    plan = round_to_nearest(calibrate_ranges(plan_of(module, feeds, "int4:channel", activation)))
    assert abs(measured(plan) - signal_to_noise(run(applied(plan), feeds), run(plan.programs, feeds))) < PIECES


def test_smoothing_and_a_branch_are_part_of_it() -> None:
    torch.manual_seed(0)
    module = nn.Linear(48, 300, bias=False)
    feeds: list[Tensors] = [(torch.randn(2, 200, 48),) for _ in range(4)]
    smoothing, branch = torch.rand(48) + 0.1, (torch.randn(4, 48), torch.randn(300, 4) / 9)
    plan = plan_of(module, feeds, "int4:channel", "int4:token")
    plan = plan.mapped(lambda layer: replace(layer, smoothing=smoothing, branch=branch))
    whole = signal_to_noise(run(applied(round_to_nearest(plan)), feeds), run(plan.programs, feeds))
    assert abs(measured(plan) - whole) < PIECES


@pytest.mark.parametrize("memory", [1.0, 1e-9])
def test_layers_come_in_order_however_little_memory_there_is(memory: float) -> None:
    feeds: list[Tensors] = [(torch.randn(5, 32),) for _ in range(3)]
    module = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48))
    plan = plan_of(module, feeds, "int8:channel", "int8:token")
    found = list(layer_inputs(plan, plan.layers, samples=2, memory=memory))
    assert [layer.name for layer, _ in found] == ["net.0", "net.2"]
    assert [len(each.pieces) for _, each in found] == [2, 2]
    met = torch.zeros(3, 32)
    for sample in plan.calibration.few(2).samples:
        met[sample.step] = sample.feeds[0].abs().amax(0)
    assert torch.equal(torch.as_tensor(found[0][1].largest), met)


def measured(plan: Plan) -> float:
    """Give the layer's measured error, in dB."""
    ((layer, each),) = layer_inputs(plan, plan.layers, samples=8)
    return -10 * math.log10(each.error(layer, layer_of(plan)))
