"""A pipeline guides in the interval only: with a batch of both branches, and with a call for each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from diffc.compiler.commands.limit_guidance import limit_guidance


class Denoiser(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (2 * x,)


def recipe(interval: tuple[float, float] | None) -> dict[str, Any]:
    return {"guidance_interval": interval, "batch": 1, "options": {"eta": 0.5}}


def outputs(denoiser: Denoiser, branches: list[torch.Tensor]) -> list[float]:
    return [float(value) for x in branches for value in denoiser(x)[0].flatten()]


@pytest.mark.parametrize(
    ("branches", "conditional"),
    [
        ([torch.tensor([[1.0], [3.0]])], 6.0),  # one call: the conditional half is the last
        ([torch.tensor([[3.0]]), torch.tensor([[1.0]])], 6.0),  # two calls: the conditional one is the first
    ],
    ids=["one call", "two calls"],
)
def test_outside_the_interval_both_branches_are_the_conditional_one(
    branches: list[torch.Tensor], conditional: float
) -> None:
    denoiser = Denoiser()
    guided = outputs(denoiser, branches)
    with limit_guidance(SimpleNamespace(components={"unet": denoiser}), recipe((0.25, 0.75)), steps=4) as limited:
        assert limited["options"]["eta"] == 0.5
        after = limited["options"]["callback_on_step_end"]
        steps = list[list[float]]()
        for step in range(4):
            steps.append(outputs(denoiser, branches))
            assert after(None, step, None, {"latents": 1}) == {"latents": 1}
    assert steps == [[conditional] * 2, guided, guided, [conditional] * 2]
    assert outputs(denoiser, branches) == guided, "the hook is gone"


def test_without_an_interval_nothing_is_hooked() -> None:
    denoiser = Denoiser()
    with limit_guidance(SimpleNamespace(components={"unet": denoiser}), recipe(None), steps=4) as limited:
        assert limited == recipe(None)
        assert outputs(denoiser, [torch.ones(2, 1)]) == [2.0, 2.0]
