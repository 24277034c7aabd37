"""Residual blocks are found by their shape, in any model, and cut out they give what they gave inside."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.graph.body import body_of
from diffc.compiler.quantization.blocks import Block, boundaries, find_blocks
from diffc.compiler.quantization.plan import Plan
from diffc.passes.quantize.q_diffusion import q_diffusion
from tests.one_graph import Tensors, plan_of
from tests.tolerances import GRAPH

WIDTH = 32


class Net(nn.Module):
    """Have a block with a shortcut, one in another, layers in none, and a sum that is no block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in ("first", "deep", "deeper", "shortcut", "outer", "inner", "innermost", "last", "beside", "time"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Go through all of them."""
        x = self.first(x)
        x = self.shortcut(x) + self.deeper(torch.relu(self.deep(x) * time))
        y = self.outer(x)
        y = y + self.innermost(self.inner(y).tanh())
        return self.last(x + y) + self.beside(x + y)


def feeds() -> list[Tensors]:
    """Sample what reaches the net in three steps."""
    torch.manual_seed(1)
    return [(torch.randn(2, 5, WIDTH), torch.rand(1)) for _ in range(3)]


def plan(module: nn.Module | None = None) -> Plan:
    """Plan a net."""
    return plan_of(module or Net(), feeds(), "int4:channel")


def layers(blocks: list[Block]) -> list[set[str]]:
    """Name the layers of each block."""
    return [{layer.name.removeprefix("net.") for layer in block.layers.values()} for block in blocks]


def test_blocks_are_innermost_and_one_path_is_shorter() -> None:
    assert layers(find_blocks(plan(), lambda _: True)) == [{"deep", "deeper", "shortcut"}, {"inner", "innermost"}]


def test_only_wanted_layers_are_learned() -> None:
    found = find_blocks(plan(), lambda layer: layer.name.endswith(("deep", "last")))
    assert layers(found) == [{"deep"}]


def test_a_layer_is_in_one_block_at_most() -> None:
    both = plan()
    (program,) = both.programs
    (graph,) = program.graphs
    other = replace(graph, name="other")
    samples = both.calibration.samples
    calibration = replace(both.calibration, samples=(*samples, *(replace(s, graph="other") for s in samples)))
    both = Plan.of((replace(program, graphs=(graph, other)),), calibration, lambda _: both.layers[0].scheme)
    assert [block.graph.name for block in find_blocks(both, lambda _: True)] == ["net", "net"]


def test_the_sum_of_a_layers_parts_is_no_block() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            """Concatenate, and come back."""
            x = torch.cat([x, x * time], -1)
            return x + self.two(self.one(x))

    split = q_diffusion(plan(Joined()))
    assert layers(find_blocks(split, lambda _: True)) == [{"one_part0", "one_part1", "two"}]


@pytest.mark.parametrize("memory", [1.0, 1e-9])
def test_cut_out_a_block_gives_what_it_gave(memory: float) -> None:
    net, given = Net().requires_grad_(False), plan()
    gave = dict[str, list[torch.Tensor]]()
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda _, __, y, name=name: gave.setdefault(name, []).append(y))
    for values in feeds():
        net(*values)
    gave["sum"] = [a + b for a, b in zip(gave["shortcut"], gave["deeper"], strict=True)]
    gave["outer sum"] = [a + b for a, b in zip(gave["outer"], gave["innermost"], strict=True)]
    found = list(boundaries(given, find_blocks(given, lambda _: True), memory))
    for (block, inputs), names in zip(found, [("sum", "shortcut", "deep"), ("outer sum", "inner")], strict=True):
        module = block.module(body_of(block.graph), watched=True)
        weights = [layer.matrix() for layer in block.layers.values()]
        made = [module(*values, *weights) for values in inputs]
        for outputs, name in zip(zip(*made, strict=True), names, strict=True):
            assert max(float((a - b).abs().max()) for a, b in zip(outputs, gave[name], strict=True)) < GRAPH
