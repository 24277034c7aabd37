"""Tiles are turned on where an autoencoder computes in no other way, with a warning, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError, DiffcWarning
from diffc.compiler.tracing.tiles import turn_on
from diffc.compiler.tracing.trace import capture


class Decoder(nn.Module):
    """Decode in tiles only."""

    def __init__(self) -> None:
        super().__init__()
        self.use_tiling = False

    def enable_tiling(self) -> None:
        """Decode in tiles from now on."""
        self.use_tiling = True

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return twice the latents."""
        if not self.use_tiling:
            raise NotImplementedError("not without tiles")
        return torch.cat([tile * 2 for tile in z.split(2)])


def test_tiles_are_turned_on_where_a_decoder_needs_them() -> None:
    decoder = Decoder()
    with pytest.warns(DiffcWarning, match="vae computes in tiles only: they are turned on"):
        program = capture(lambda: decoder.decode(torch.randn(4)), {"vae": decoder})
    assert decoder.use_tiling and [op.operator for op in program.ops] == ["noise", "vae_decode"]
    assert not turn_on("vae", decoder) and not turn_on("linear", nn.Linear(2, 2))


def test_a_component_without_tiles_is_refused() -> None:
    module = nn.Module()
    with pytest.raises(CaptureError, match="net does not fit its arguments"):
        capture(lambda: module(torch.randn(4)), {"net": module})
