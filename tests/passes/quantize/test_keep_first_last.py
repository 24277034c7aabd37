"""Which layers are the first and the last of a denoiser, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.feature_cache.apply_schedule import Feature, Reuse, cached
from diffc.compiler.quantization.formats import parse_spec
from diffc.compiler.quantization.plan import Plan, Scheme
from diffc.compiler.tracing.trace import capture
from diffc.passes.fuse_linear import fuse_linear
from diffc.passes.quantize.keep_first_last import keep_first_last

WIDTH = 64


class Convolutional(nn.Module):
    """Make features of four channels and of what is joined to them, add other features, and go back."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, WIDTH, 3, padding=1)
        self.middle = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.added = nn.Conv2d(WIDTH, WIDTH, 1)
        self.norm = nn.GroupNorm(4, WIDTH)
        self.last = nn.Conv2d(WIDTH, 4, 3, padding=1)

    def forward(self, sample: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Predict the noise."""
        hidden = self.first(torch.cat([sample * 0.5, sample], 1))
        hidden = self.middle(nn.functional.silu(hidden)) + self.added(residual)
        return self.last(nn.functional.silu(self.norm(hidden))) * 0.1 + sample


class Patched(nn.Module):
    """Cut a picture into patches, and put them together again."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 16)

    def forward(self, sample: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Predict the noise."""
        patches = sample.reshape(1, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 16)
        hidden = nn.functional.layer_norm(self.first(patches), [WIDTH])
        hidden = self.last(nn.functional.gelu(self.middle(hidden)))
        return torch.einsum("nhwcpq->nchpwq", hidden.reshape(1, 4, 4, 4, 2, 2)).reshape(1, 4, 8, 8)


def planned(denoiser: nn.Module, weight: str, activation: str) -> Plan:
    """Plan for a sampler of three steps, whose denoiser is also given features made of noise."""

    def sample() -> torch.Tensor:
        latents, residual = torch.randn(1, 4, 8, 8), torch.randn(1, WIDTH, 8, 8)
        for _ in range(3):
            latents = latents - 0.1 * denoiser(latents, residual)
        return latents

    program = fuse_linear(capture(sample, {"denoiser": denoiser.eval()}))
    scheme = Scheme(parse_spec(weight), parse_spec(activation))
    return Plan.of((program,), Calibration(program, (), (), 0, ""), lambda _: scheme)


def schemes(plan: Plan) -> dict[str, tuple[str, str]]:
    """Map the layers to what their weights and activations are."""
    return {
        layer.name.split(".")[-1]: (str(layer.scheme.weight), str(layer.scheme.activation)) for layer in plan.layers
    }


@pytest.mark.parametrize("denoiser", [Convolutional, Patched])
def test_both_ends_are_kept(denoiser: Callable[[], nn.Module]) -> None:
    plan = planned(denoiser(), "int4:channel", "int4:tensor:dynamic")
    before, after = schemes(plan), schemes(keep_first_last(plan))
    assert {name for name in after if after[name] != before[name]} == {"first", "last"}
    assert after["first"] == after["last"] == ("int8:channel", "int8:tensor:dynamic")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("int4:group=64", "int4:group=64:dynamic"), ("int8:channel", "int8:token")),
        (("nvfp4", "nvfp4:dynamic"), ("e4m3:channel", "e4m3:token")),
        (("uint4:channel", "uint6:tensor"), ("uint8:channel", "uint8:tensor")),
        (("int4:group=32:scale=uint4", "int8:tensor:step"), ("int8:channel:scale=float16", "int8:tensor:step")),
        (("int8:group=32", "float"), ("int8:group=32", "None")),
    ],
)
def test_eight_bits_take_the_place_of_fewer(given: tuple[str, str], kept: tuple[str, str]) -> None:
    found = schemes(keep_first_last(planned(Patched(), *given)))
    assert (found["first"], found["last"]) == (kept, kept)


def test_float_is_asked_for() -> None:
    found = schemes(keep_first_last(planned(Patched(), "int8:channel", "int8:token"), in_float=True))
    assert [name for name, scheme in found.items() if scheme == ("None", "None")] == ["first", "last"]


def test_between_pieces_of_a_cached_denoiser_there_are_no_ends() -> None:
    plan = planned(Convolutional(), "int4:channel", "int4:tensor:dynamic")
    middle = next(layer.sites[0].node for layer in plan.layers if layer.name.endswith("middle"))
    schedule = [(), (Reuse(Feature(middle), 0),), ()]
    pieces = cached(plan.programs, lambda *_: schedule)
    plan = Plan.of(pieces, plan.calibration, lambda layer: plan.layers[0].scheme)
    ends = {site.graph for layer in plan.layers if layer.name.endswith("middle") for site in layer.sites}
    assert ends == {"denoiser_piece_1"}, "the middle layer is the last of its piece"
    before, after = schemes(plan), schemes(keep_first_last(plan))
    assert {name for name in after if after[name] != before[name]} == {"first", "last"}


def test_what_is_computed_before_the_loop_has_no_ends() -> None:
    plan = planned(Patched(), "int4:channel", "float")
    (graph,) = plan.programs[0].graphs
    early = replace(plan.programs[0], graphs=(replace(graph, stage="request"),))
    plan = replace(plan, programs=(early,))
    assert keep_first_last(plan).layers == plan.layers
