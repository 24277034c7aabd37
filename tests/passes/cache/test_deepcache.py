"""DeepCache of the trained UNet against diffusers, where a hook takes over the deep part of a concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffc.compiler.checkpoint.load import load
from diffc.compiler.errors import PassError
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.pipeline import Sampling, trace_pipeline
from diffc.passes.cache.deepcache import _quadratic, deepcache
from tests.conftest import DIT, PROMPT, UNET
from tests.tolerances import PICTURE
from tests.traced import Picture, Traced, staged

ACROSS = (64, 64, 64, 128, 128, 192)
"""The channels of the UNet's skip connections, the outermost first."""

STEPS = 5
EVALUATIONS = {"dpmpp-2m": STEPS, "heun": 2 * STEPS - 1}


@pytest.fixture(scope="module")
def traced() -> Traced:
    """Trace the trained UNet."""
    return Traced(UNET, tuple(EVALUATIONS), STEPS)


@pytest.fixture(scope="module")
def programs(traced: Traced) -> tuple[Program, ...]:
    """Stage its programs for the first sampler."""
    return staged(traced.programs["dpmpp-2m"])


def hooked(traced: Traced, sampler: str, sources: Sequence[int], branch: int, guidance: float) -> Picture:
    """Sample with diffusers, where evaluation n takes over what evaluation ``sources[n]`` computed."""
    layers = [resnet for block in traced.pipeline.unet.up_blocks for resnet in block.resnets][::-1]
    kept, count = dict[int, torch.Tensor](), iter(range(len(sources)))

    def take_over(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        at = next(count)
        kept[at], across = args[0].split([args[0].shape[1] - ACROSS[branch], ACROSS[branch]], 1)
        return torch.cat([kept[sources[at]], across], 1), *args[1:]

    hook = layers[branch].register_forward_pre_hook(take_over)
    drawn = traced.drawn(sampler, guidance)
    hook.remove()
    assert next(count, None) is None, "every evaluation must be hooked"
    return drawn


CASES = [("dpmpp-2m", 0, 2, 5.0), pytest.param("heun", 3, 4, 1.0, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("sampler", "branch", "interval", "guidance"), CASES)
def test_a_bundle_draws_what_a_hooked_pipeline_draws(
    traced: Traced, tmp_path: Path, sampler: str, branch: int, interval: int, guidance: float
) -> None:
    sources = [at // interval * interval for at in range(EVALUATIONS[sampler])]
    wanted = hooked(traced, sampler, sources, branch, guidance)
    bundle = traced.bundle(sampler, tmp_path, f"deepcache:interval={interval},branch={branch}")
    found = bundle(PROMPT, seed=3, guidance_scale=guidance, output="np")
    assert np.abs(found - wanted).max() <= PICTURE
    whole = hooked(traced, sampler, range(EVALUATIONS[sampler]), branch, guidance)
    assert np.abs(whole - wanted).max() > 3 * PICTURE, "the reuse must be seen"


def test_interval_1_is_no_cache(programs: tuple[Program, ...]) -> None:
    assert deepcache(programs, interval=1) == programs


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ({"interval": 6}, "the interval is 6, and there are 5 evaluations", "at most 5"),
        ({"interval": 0}, "interval=0", "1 or more"),
        ({"schedule": "cubic"}, "schedule=cubic", "quadratic"),
        ({"branch": 6}, "branch 6 of 6 skip connections", "to 5"),
        ({"branch": -1}, "branch -1 of 6", "from 0"),
        ({"schedule": "quadratic", "center": 5}, "the center is step 5 of 5", "1 to 4"),
        ({"schedule": "quadratic", "power": 1.0}, "no 2 of 5 steps are dense", "schedule=uniform"),
    ],
)
def test_what_is_no_schedule_is_refused(
    programs: tuple[Program, ...], options: dict[str, Any], what: str, fix: str
) -> None:
    with pytest.raises(PassError) as refused:
        deepcache(programs, **options)
    assert what in refused.value.what and fix in str(refused.value.fix)


def test_a_transformer_without_skip_connections_is_refused() -> None:
    pipeline, calls = load(DIT), ComponentCalls()
    transformer = calls.graphs(trace_pipeline(pipeline, Sampling(steps=2), calls))
    with pytest.raises(PassError, match="the denoiser has no skip connections") as refused:
        deepcache(staged(transformer), interval=2)
    assert "delta-dit" in str(refused.value.fix)


@pytest.mark.parametrize(
    ("count", "number", "center", "power", "wanted"),
    [
        # What the published function gave with NumPy; 4800 other settings agreed with it too.
        (50, 10, 15, 1.4, [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]),
        (20, 7, 6, 1.4, [0, 3, 5, 7, 10, 13, 16]),
        (100, 20, 30, 1.2, [0, 5, 10, 15, 19, 24, 28, 31, 36, 40, 45, 50, 55, 60, 65, 71, 76, 82, 88, 94]),
    ],
)
def test_the_quadratic_schedule_is_that_of_the_published_code(
    count: int, number: int, center: int, power: float, wanted: list[int]
) -> None:
    assert _quadratic(count, number, center, power) == wanted
