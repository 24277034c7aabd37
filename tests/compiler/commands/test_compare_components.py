"""Calls of components are recorded with their inputs by port; `test_compare` compares real ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from diffc.compiler.commands.compare_components import ComponentCall, not_compared, recorded
from diffc.runtime.program.program import Type


class Denoiser(nn.Module):
    def forward(self, sample: torch.Tensor, timestep: int, *, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return sample + timestep, states * 2


def test_one_call_of_each_type_is_recorded_and_the_hook_goes() -> None:
    denoiser, calls = Denoiser(), list[ComponentCall]()
    pipeline = SimpleNamespace(components={"unet": denoiser, "tokenizer": object()})
    with recorded(pipeline, calls):
        for timestep, width in ((1, 2), (5, 2), (7, 3)):
            denoiser(torch.full((1, width), 10.0), timestep, states=torch.ones(1))
    denoiser(torch.ones(1, 9), 0, states=torch.ones(9))
    assert [call.component for call in calls] == ["unet", "unet"]
    first, second = calls
    assert {port: array.tolist() for port, array in first.feeds.items()} == {"sample": [[10, 10]], "states": [1]}
    assert [array.tolist() for array in first.outputs] == [[[11, 11]], [2]]
    assert second.types == {"sample": ("float32", (1, 3)), "states": ("float32", (1,))}


def test_a_call_serves_ports_of_its_types() -> None:
    call = ComponentCall("unet", {"x": np.zeros((1, 2), np.float32), "y": np.zeros(3, np.int64)}, [])
    assert call.has({"x": Type("float32", (1, 2))}) and call.has({})
    assert not call.has({"x": Type("float32", (2, 1))}) and not call.has({"x": Type("float16", (1, 2))})
    assert not call.has({"z": Type("float32", (1, 2))})


def test_components_that_no_comparison_is_of_are_named_with_the_reason() -> None:
    calls = [ComponentCall(name, {}, []) for name in ("unet", "vae")]
    components = {"unet", "vae", "text_encoder", "transformer", "arithmetic", ""}
    rest = not_compared(components, {"vae_decode": {"component": "vae"}}, calls, {"unet", "vae", "text_encoder"})
    assert rest == {
        "text_encoder": "the source does not call it",
        "transformer": "the source has none",
        "unet": "the source calls it with inputs of other types or shapes",
    }
