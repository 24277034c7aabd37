"""Layers that read a concatenation are split where it lies: the numbers stay, and each part gets its own scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.errors import PassError
from diffc.compiler.graph.lazy_weights import read
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan, find_layers
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.q_diffusion import q_diffusion
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, plan_of, run, signal_to_noise
from tests.tolerances import GRAPH, SPLIT_GAIN

FIRST, SECOND, LARGER = 32, 16, 30


class Shortcut(nn.Module):
    """Go up a U-Net: a concatenation, whose convolution and shortcut are summed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.GroupNorm(8, FIRST + SECOND)
        self.conv = nn.Conv2d(FIRST + SECOND, 32, 3, padding=1)
        self.shortcut = nn.Conv2d(FIRST + SECOND, 32, 1)
        self.after = nn.Conv2d(32, 24, 3, padding=1)
        with torch.no_grad():  # what is large is no more important
            self.shortcut.weight[:, FIRST:] /= LARGER

    def forward(self, hidden: torch.Tensor, skip: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Normalise and modulate on the way."""
        x = torch.cat([hidden, skip], 1)
        y = self.conv(nn.functional.silu(self.norm(x) * (1 + scale[:, :, None, None])))
        return self.after(self.shortcut(x) + y)


class Tokens(nn.Module):
    """Concatenate three inputs on the channels of tokens, before or after ``between``."""

    def __init__(self, between: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.norm = nn.LayerNorm(24)
        self.linear = nn.Linear(24, 64)

    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Let something happen between the two."""
        x = torch.cat([a, b, c], -1)
        between = {
            "norm": lambda: self.norm(x),
            "flip": lambda: x.flip(-1),
            "sum of two": lambda: x + x.tanh(),
            "tokens": lambda: torch.cat([x, x], 1),
        }
        return self.linear(between[self.between]())


def shortcut_feeds() -> list[Tensors]:
    """Draw inputs of which the skip is much larger."""
    torch.manual_seed(1)
    return [
        (torch.randn(2, FIRST, 6, 6), LARGER * torch.randn(2, SECOND, 6, 6), torch.rand(2, FIRST + SECOND))
        for _ in range(12)
    ]


def names(plan: Plan) -> list[str]:
    """List the layers."""
    return [layer.name.removeprefix("net.") for layer in plan.layers]


def layer(plan: Plan, name: str) -> Layer:
    """Find a layer."""
    return next(each for each in plan.layers if each.name == f"net.{name}")


def test_each_reader_of_a_concatenation_becomes_two_layers() -> None:
    feeds = shortcut_feeds()
    before = plan_of(Shortcut(), feeds, "int8:channel", "int8:tensor")
    after = q_diffusion(before)
    assert sorted(names(before)) == ["after", "conv", "shortcut"]
    assert sorted(names(after)) == ["after", "conv_part0", "conv_part1", "shortcut_part0", "shortcut_part1"]
    assert {each.scheme for each in after.layers} == {before.layers[0].scheme}
    whole, (one, two) = layer(before, "conv").weight, (layer(after, f"conv_part{n}").weight for n in (0, 1))
    assert whole is not None and one is not None and two is not None
    assert torch.equal(read(one), whole[:, :FIRST]) and torch.equal(read(two), whole[:, FIRST:])


def test_the_numbers_stay() -> None:
    feeds = shortcut_feeds()
    before = plan_of(Shortcut(), feeds, "int8:channel")
    wanted, made = run(before.programs, feeds), run(q_diffusion(before).programs, feeds)
    assert max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(made, wanted, strict=True)) < GRAPH


def test_scales_of_their_own_serve_two_distributions_better() -> None:
    feeds = shortcut_feeds()
    plan = plan_of(Shortcut(), feeds, "int8:channel", "int4:tensor")
    wanted = run(plan.programs, feeds)
    together, apart = (
        signal_to_noise(run(applied(round_to_nearest(calibrate_ranges(each))), feeds), wanted)
        for each in (plan, q_diffusion(plan))
    )
    assert apart - together > SPLIT_GAIN


def token_plan(between: str) -> Plan:
    """Plan the layer of tokens."""
    feeds = [tuple(torch.randn(2, 5, 8) for _ in range(3))]
    return plan_of(Tokens(between), feeds, "int8:channel")


def test_a_linear_layer_is_split_in_three_through_a_norm() -> None:
    assert names(q_diffusion(token_plan("norm"))) == ["linear_part0", "linear_part1", "linear_part2"]


@pytest.mark.parametrize("between", ["flip", "sum of two", "tokens"])
def test_inputs_of_moved_channels_or_joined_paths_are_not_split(between: str) -> None:
    plan = token_plan(between)
    assert names(q_diffusion(plan)) == ["linear"]
    assert q_diffusion(plan).programs == plan.programs


def test_layers_in_float_are_not_split() -> None:
    assert names(q_diffusion(plan_of(Shortcut(), shortcut_feeds(), "float"))) == names(
        plan_of(Shortcut(), shortcut_feeds(), "float")
    )


def test_a_layer_of_two_graphs_is_split_in_both() -> None:
    feeds = shortcut_feeds()
    plan = plan_of(Shortcut(), feeds, "int8:channel")
    (program,) = plan.programs
    (graph,) = program.graphs
    both = replace(program, graphs=(graph, replace(graph, name="other")))
    layers = tuple(replace(new, scheme=plan.layers[0].scheme) for new in find_layers([both]))
    after = q_diffusion(Plan((both,), layers, plan.calibration))
    assert len(after.layers) == 5 and {len(each.sites) for each in after.layers} == {2}


def test_strided_steps_are_kept() -> None:
    plan = plan_of(Shortcut(), shortcut_feeds(), "int8:channel")
    assert [sample.step for sample in q_diffusion(plan, steps=4).calibration.samples] == [0, 3, 6, 9]
    assert len(q_diffusion(plan, steps=50).calibration.samples) == 12


def test_a_plan_that_was_quantized_before_is_refused() -> None:
    plan = round_to_nearest(plan_of(Shortcut(), shortcut_feeds(), "int8:channel"))
    with pytest.raises(PassError, match="is already smoothed, rounded or has ranges, and is to be split"):
        q_diffusion(plan)
    with pytest.raises(PassError, match="steps is 0"):
        q_diffusion(plan, steps=0)
