"""Faster Diffusion of the trained UNet against diffusers, where hooks take over all that the encoder gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffc.compiler.errors import PassError
from diffc.compiler.ir.program import Program
from diffc.passes.cache.faster_diffusion import faster_diffusion
from tests.conftest import PROMPT, UNET
from tests.tolerances import PICTURE
from tests.traced import Picture, Traced, staged

STEPS = 10
KEYS = (0, 1, 2, 3, 5, 7)
"""The published 0, 1, 2, 3, 5, 10, 15, 25, 35 of 50, for 10 steps: 0.2 and 0.4 are the step 0, 0.6 and 1 the step 1."""


@pytest.fixture(scope="module")
def traced() -> Traced:
    """Trace the trained UNet."""
    return Traced(UNET, ("dpmpp-2m", "heun"), STEPS)


@pytest.fixture(scope="module")
def programs(traced: Traced) -> tuple[Program, ...]:
    """Stage its programs for the first sampler."""
    return staged(traced.programs["dpmpp-2m"])


def taking_over(keys: Sequence[int], count: list[int]) -> Callable[..., Any]:
    """Make a hook that gives what its module gave in the last key step."""
    kept = list[Any]()

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        if count[0] in keys:
            kept[:] = [output]
        return kept[0]

    return hook


def hooked(traced: Traced, keys: Sequence[int], guidance: float, noise: float = 0.0) -> Picture:
    """Sample with diffusers, encoding in key steps only, and adding noise in the second half."""
    unet, count = traced.pipeline.unet, [0]
    first = torch.randn(1, 4, 16, 16, generator=torch.Generator("cpu").manual_seed(3))
    encoder = (unet.conv_in, *unet.down_blocks, unet.mid_block)
    hooks = [module.register_forward_hook(taking_over(keys, count)) for module in encoder]

    def after(_pipeline: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        count[0] += 1
        added = noise if STEPS / 2 <= step + 1 < STEPS else 0.0
        return values | {"latents": values["latents"] + added * first}

    drawn = traced.drawn("dpmpp-2m", guidance, callback_on_step_end=after)
    for hook in hooks:
        hook.remove()
    assert count == [STEPS]
    return drawn


@pytest.mark.parametrize(
    ("spec", "keys", "guidance", "noise"),
    [
        ("faster-diffusion", KEYS, 5.0, 0.0),
        pytest.param(
            "faster-diffusion:interval=3,noise=0.003,batched=true", (0, 3, 6, 9), 1.0, 0.003, marks=pytest.mark.slow
        ),
    ],
)
def test_a_bundle_draws_what_a_hooked_pipeline_draws(
    traced: Traced, tmp_path: Path, spec: str, keys: Sequence[int], guidance: float, noise: float
) -> None:
    wanted = hooked(traced, keys, guidance, noise)
    found = traced.bundle("dpmpp-2m", tmp_path, spec)(PROMPT, seed=3, guidance_scale=guidance, output="np")
    assert np.abs(found - wanted).max() <= PICTURE
    for other in (hooked(traced, range(STEPS), guidance, noise), hooked(traced, keys, guidance, noise + 0.01)):
        assert np.abs(other - wanted).max() > 3 * PICTURE, "the reuse and the noise must be seen"


def test_steps_between_keys_do_not_encode(programs: tuple[Program, ...]) -> None:
    found = faster_diffusion(programs)[0]
    pieces = [graph for graph in found.graphs if "piece" in graph.name]
    assert [sum(op.operator == piece.name for op in found.ops) for piece in pieces] == [len(KEYS), STEPS]
    assert "sample" not in [port.name for port in pieces[1].inputs]
    weights = [sum(tensor.numel() for tensor in piece.body.state_dict.values()) for piece in pieces]
    assert weights[0] < weights[1], "the decoder, which reads the skips, is the larger part"


def test_interval_1_is_no_cache(programs: tuple[Program, ...]) -> None:
    assert faster_diffusion(programs, interval=1) == programs


def test_an_interval_larger_than_the_steps_is_refused(programs: tuple[Program, ...]) -> None:
    with pytest.raises(PassError, match="the interval is 11, and there are 10 evaluations"):
        faster_diffusion(programs, interval=11)


def test_noise_needs_latents_of_one_value(traced: Traced) -> None:
    with pytest.raises(PassError, match="latents are not one value") as refused:
        faster_diffusion(staged(traced.programs["heun"]), interval=2, noise=0.003)
    assert "dpmpp-2m" in str(refused.value.fix)
