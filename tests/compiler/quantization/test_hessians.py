"""A Gram matrix says what a layer's squared error is: against the layer itself, in torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffc.compiler.quantization import hessians as module
from diffc.compiler.quantization.hessians import blocks, by_block, from_blocks, hessians
from diffc.compiler.quantization.plan import Plan
from tests.one_graph import layer_of, plan_of
from tests.tolerances import GRAM

LAYERS = [
    (nn.Linear(24, 40), (3, 7, 24)),
    (nn.Conv1d(8, 32, 5, stride=2, padding=2, dilation=2), (2, 8, 30)),
    (nn.Conv2d(12, 16, 3, stride=2, padding=1), (2, 12, 9, 6)),
    (nn.Conv2d(12, 24, (3, 5), stride=(1, 2), padding=(0, 4), dilation=(1, 2), groups=3), (2, 12, 9, 11)),
    (nn.Conv2d(64, 64, 3, padding=1, groups=64), (1, 64, 5, 5)),
    (nn.Conv3d(4, 8, 3, padding=1), (1, 4, 4, 5, 3)),
]

each_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda given: type(given).__name__)


def gram_of(plan: Plan, windows: int = 10**6, quantized: bool = False) -> torch.Tensor:
    """Give the matrix of the only layer."""
    ((_, found),) = hessians(plan, plan.layers, windows=windows, quantized=quantized, memory=1.0)
    return found


@each_layer
def test_a_hessian_gives_the_squared_error_of_the_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    feeds = [(torch.randn(shape),) for _ in range(3)]
    plan = plan_of(layer, feeds, "int8:channel")
    error = torch.randn_like(layer.weight)
    arranged = by_block(layer_of(plan), error)
    mean = torch.einsum("brc,bcd,brd->", arranged, gram_of(plan), arranged)
    layer.bias.zero_()
    layer.weight.copy_(error)
    outputs = torch.stack([layer(x) for (x,) in feeds])
    windows = outputs.numel() / len(error)
    assert float(mean) == pytest.approx(float(outputs.square().sum() / windows), rel=GRAM)


@each_layer
def test_blocks_put_back_are_the_weight(layer: nn.Module, shape: tuple[int, ...]) -> None:
    planned = layer_of(plan_of(layer, [(torch.zeros(shape),)], "int8:channel"))
    assert torch.equal(from_blocks(planned, by_block(planned, layer.weight)), layer.weight)


def test_a_wide_layer_has_a_block_for_each_part_of_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plan = plan_of(nn.Conv2d(12, 16, 3), [(torch.randn(2, 12, 9, 6),)], "int8:channel")
    whole = gram_of(plan)[0]
    monkeypatch.setattr(module, "WIDEST", 40)  # three parts of four channels, 36 columns each
    assert blocks(layer_of(plan)) == 3
    for part, at in zip(gram_of(plan), (0, 36, 72), strict=True):
        torch.testing.assert_close(part, whole[at : at + 36, at : at + 36])


def test_as_many_windows_are_looked_at_as_asked_for() -> None:
    torch.manual_seed(0)
    plan = plan_of(nn.Conv2d(1, 64, 3, padding=1), [(torch.ones(1, 1, 32, 32),)] * 4, "int8:channel")
    # The centre of a window of ones is a one; its corner is where it falls on the padding a zero.
    assert gram_of(plan, 40)[0, 4, 4] == 1.0
    corner = float(gram_of(plan, 40)[0, 0, 0])
    assert corner * 40 == pytest.approx(round(corner * 40), abs=GRAM)


def test_inputs_are_those_that_a_quantized_layer_gets() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 24)
    plan = plan_of(nn.Linear(24, 40), [(x,)], "int8:channel", "int4:token")
    scale = x.abs().amax(1, keepdim=True) / 7
    rounded = (x / scale).round() * scale
    torch.testing.assert_close(gram_of(plan, quantized=True)[0], rounded.T @ rounded / 5)


def test_few_matrices_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(nn.Sequential(*(nn.Linear(32, 32) for _ in range(5))), [(torch.randn(4, 32),)], "int8:channel")
    watched = list[int]()
    watch = Plan.watch
    monkeypatch.setattr(
        Plan, "watch", lambda self, layers, visit: (watched.append(len(layers)), watch(self, layers, visit))
    )
    assert len(list(hessians(plan, plan.layers, windows=4, quantized=False, memory=2 * 4e-9 * 32 * 32))) == 5
    assert watched == [2, 2, 1]
