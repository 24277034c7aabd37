"""Skip connections are found by structure: in a UNet and in long skips, and not in what merely concatenates."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from diffc.compiler.analysis.skip_connections import skips
from diffc.compiler.analysis.stages import denoisers
from diffc.compiler.graph.body import body_of
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.trace import capture
from diffc.passes.fuse_linear import fuse_linear
from diffc.passes.stage import stage


def program(denoiser: nn.Module, shape: tuple[int, ...]) -> Program:
    """Capture two steps of a sampler, and stage them."""

    def sample() -> torch.Tensor:
        latents = torch.randn(shape)
        for time in (900.0, 100.0):
            latents = latents - denoiser(latents, torch.tensor([time]))
        return latents

    (staged,) = stage([fuse_linear(capture(sample, {"denoiser": denoiser}))])
    return staged


def shapes(found: Program) -> list[tuple[list[int], list[int]]]:
    """Give the shapes of the two sides of each skip connection."""
    (graph,) = denoisers([found])
    values = {node.name: node.meta.get("val") for node in body_of(graph).graph.nodes}
    return [(list(values[skip.up].shape), list(values[skip.across].shape)) for skip in skips(graph, [found])]


class Picture(nn.Module):
    """Call a UNet of diffusers without a text."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            mid_block_type="UNetMidBlock2D",
            norm_num_groups=8,
        )

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Predict the noise."""
        return self.unet(sample, timestep, torch.zeros(1, 1, 8)).sample


class LongSkips(nn.Module):
    """Join tokens with what they were two layers before, as U-ViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.join = nn.Linear(16, 8)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Predict the noise."""
        first = torch.tanh(self.layers[0](sample)) * timestep
        deep = torch.tanh(self.layers[1](first))
        return self.layers[2](self.join(torch.cat([deep, first], -1)))


class Concatenates(nn.Module):
    """Join two streams, halves of a rotated query, and the picture with itself: none of it is a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.other, self.query = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Predict the noise."""
        both = torch.cat([self.image(sample), self.other(sample)], 1)
        query = self.query(both) * timestep
        rotated = torch.cat([-query[..., 4:], query[..., :4]], -1)
        return (rotated + torch.cat([sample, sample * 2], 1))[:, :4]


def test_a_unet_has_one_for_each_value_of_its_down_path() -> None:
    """As its blocks say: conv_in, two layers and a downsampler, two layers; against what comes up from below."""
    assert shapes(program(Picture(), (1, 4, 8, 8))) == [
        ([1, 16, 8, 8], [1, 16, 8, 8]),
        ([1, 16, 8, 8], [1, 16, 8, 8]),
        ([1, 32, 8, 8], [1, 16, 8, 8]),
        ([1, 32, 4, 4], [1, 16, 4, 4]),
        ([1, 32, 4, 4], [1, 32, 4, 4]),
        ([1, 32, 4, 4], [1, 32, 4, 4]),
    ]


def test_long_skips_of_a_transformer_are_found() -> None:
    assert shapes(program(LongSkips(), (1, 4, 8))) == [([1, 4, 8], [1, 4, 8])]


@pytest.mark.parametrize("denoiser", [Concatenates])
def test_other_concatenations_are_none(denoiser: type[nn.Module]) -> None:
    assert shapes(program(denoiser(), (1, 4, 8))) == []
