"""A-SDM's feature inheritance in a tiny transformer and a tiny UNet, against samplers that inherit by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diffc.compiler.errors import PassError
from diffc.passes.cache.a_sdm import a_sdm
from diffc.runtime.program.verify import verify
from tests.compiler.feature_cache.test_apply_schedule import (
    CHANNELS,
    Kept,
    Transformer,
    UNet,
    by_hand,
    close,
    run,
    together,
)

WHOLE = range(5)


class Inheriting(Transformer):
    """Inherit the second and the third block's part, or what they make of the tokens."""

    level = "unit"

    def parts(
        self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, kept: Kept | None = None
    ) -> tuple[torch.Tensor, Kept]:
        """Compute with what is given, if anything is."""
        tokens = self.into(sample.flatten(2).transpose(1, 2))
        scale = 1 + self.time(timestep[:, None] / 1000)[:, None] + self.text(text).mean(1)[:, None]
        made = Kept()
        for at, block in enumerate(self.blocks):
            added = torch.tanh(block(tokens * scale))
            if kept and self.level == "unit" and str(at) in kept:
                added = kept[str(at)]
            tokens = tokens + added
            if at == 2:
                tokens = kept["tokens"] if kept and self.level == "layer" else tokens
                made["tokens"] = tokens
            if at in (1, 2):
                made[str(at)] = added
        return self.out(tokens).transpose(1, 2).reshape(sample.shape), made


class Nested(UNet):
    """Have two residual blocks of one size, two of half of it, of which one has a shortcut, and one of the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(6))
        self.shortcut, self.out = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, 2, 1)

    def parts(
        self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, kept: Kept | None = None
    ) -> tuple[torch.Tensor, Kept]:
        """Compute with what the half size gave, if that is given."""
        time = torch.tanh(self.time(timestep[:, None] / 1000) + self.text(text).mean(1))[:, :, None, None]
        x = self.into(sample)
        x = x + torch.tanh(self.convs[0](x) + time)
        x = x + torch.tanh(self.convs[1](x))
        low = torch.tanh(self.down(x))
        low = self.shortcut(low) + self.convs[3](torch.tanh(self.convs[2](low) + time))
        low = low + torch.tanh(self.convs[4](low))
        low = kept["low"] if kept else low
        x = nn.functional.interpolate(low, scale_factor=2.0)
        return self.out(x + torch.tanh(self.convs[5](x))), {"low": low}


@pytest.mark.parametrize("level", ["unit", "layer"])
@pytest.mark.parametrize(
    ("options", "sources"),
    [
        ({}, (0, 0, 2, 2, 4)),
        ({"interval": 3}, (0, 0, 0, 3, 3)),
        ({"interval": 4, "start": 0.2, "stop": 0.8}, (0, 1, 1, 1, 4)),
    ],
)
def test_a_step_inherits_as_by_hand(level: str, options: dict[str, Any], sources: tuple[int, ...]) -> None:
    model = Inheriting()
    model.level = level
    (program,) = together(model, 5)
    (found,) = a_sdm([program], level=level, **options)
    wanted = by_hand(model, sources)
    assert close(run(verify(found)), wanted)
    assert not close(by_hand(model, WHOLE), wanted), "the inheritance must be seen"


@pytest.mark.parametrize(("level", "begin", "end"), [("block", 0.5, 0.75), ("layer", 0.52, 0.75)])
def test_blocks_of_one_size_inherit_together(level: str, begin: float, end: float) -> None:
    """The middle of the small ones' work lies in the part, or of both of them."""
    model = Nested()
    (program,) = together(model, 5)
    (found,) = a_sdm([program], level=level, begin=begin, end=end)
    wanted = by_hand(model, (0, 0, 2, 2, 4))
    assert close(run(verify(found)), wanted)
    assert not close(by_hand(model, WHOLE), wanted), "the inheritance must be seen"


def test_interval_1_is_no_cache() -> None:
    programs = together(Inheriting(), 5)
    assert a_sdm(programs, interval=1) == programs


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"level": "net"}, "level=net"),
        ({"interval": 0}, "interval=0"),
        ({"interval": 6}, "the interval is 6, and there are 5 evaluations"),
        ({"begin": 0.75, "end": 0.25}, "begin=0.75, end=0.25"),
        ({"stop": 1.5}, "stop=1.5"),
        ({"begin": 0.9}, "a-sdm: level=layer, begin=0.9, end=0.75"),
        ({"begin": 0.9, "end": 1.0}, "no layer from 90% to 100% of the residual blocks"),
    ],
)
def test_what_is_no_schedule_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(PassError, match=what) as refused:
        a_sdm(together(Inheriting(), 5), **options)
    assert refused.value.fix


def test_a_net_without_residual_blocks_is_refused() -> None:
    with pytest.raises(PassError, match="no layer"):
        a_sdm(together(UNet(), 5))
