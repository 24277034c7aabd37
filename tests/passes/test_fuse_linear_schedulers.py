"""The arithmetic of every scheduler of diffusers becomes one linear for each step, and ends where it did."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import diffusers
import pytest
import torch
from torch import nn

from diffc.compiler.driver.pass_manager import run
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Number
from diffc.compiler.tracing.trace import trace
from diffc.passes import UNROLLED
from tests.random_programs import difference, numbers
from tests.tolerances import SCHEDULERS


class Model(nn.Module):
    """Stand for a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(6, 6)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Mix the columns."""
        return self.mix(sample) * 0.5


def loop(scheduler: str, model: nn.Module, **options: object) -> Callable[[], torch.Tensor]:
    """Give the sampler that every pipeline of diffusers has: ten steps of a scheduler."""

    def sample() -> torch.Tensor:
        schedule = getattr(diffusers, scheduler)(**options)
        schedule.set_timesteps(10)
        latents = torch.randn(1, 4, 2, 6) * getattr(schedule, "init_noise_sigma", 1.0)
        for timestep in schedule.timesteps:
            scale = getattr(schedule, "scale_model_input", lambda sample, _: sample)
            prediction = model(scale(latents, timestep), timestep.reshape(1).float())
            latents = schedule.step(prediction, timestep, latents, return_dict=False)[0]
        return latents

    return sample


@pytest.mark.parametrize(
    ("scheduler", "evaluations"),
    [
        ("DDIMScheduler", 10),
        ("DPMSolverMultistepScheduler", 10),
        ("UniPCMultistepScheduler", 10),
        ("EulerDiscreteScheduler", 10),
        ("EulerAncestralDiscreteScheduler", 10),
        ("HeunDiscreteScheduler", 19),
        ("PNDMScheduler", 18),
        ("DEISMultistepScheduler", 10),
        ("LMSDiscreteScheduler", 10),
        ("LCMScheduler", 10),
        ("KDPM2DiscreteScheduler", 19),
        ("FlowMatchEulerDiscreteScheduler", 10),
        ("FlowMatchHeunDiscreteScheduler", 19),
    ],
)
def test_every_scheduler_of_diffusers_ends_where_it_did(scheduler: str, evaluations: int) -> None:
    model, options = Model(), {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
    sample = loop(scheduler, model, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        calls = ComponentCalls()
        (traced,) = calls.graphs([trace(sample, {"model": model}, {}, calls=calls)])
        torch.manual_seed(7)
        with torch.no_grad():
            wanted = sample()
    program = run(traced, UNROLLED)
    torch.manual_seed(7)
    noises = [torch.randn(op.results[0].type.shape) for op in traced.ops if op.operator == "noise"]
    assert difference(numbers(program, noises), [wanted]) <= SCHEDULERS
    operators = [op.operator for op in program.ops]
    assert operators.count("model") == evaluations
    assert operators.count("linear") <= evaluations + 2
    assert set(operators) == {"model", "linear", "noise"}


def test_the_scale_of_a_two_branch_guidance_stays_a_number_of_the_request() -> None:
    """Classifier-free guidance over a diffusers scheduler, evaluated at scales that the trace never saw."""
    model = Model()

    def sample(guidance: float) -> torch.Tensor:
        schedule = diffusers.DPMSolverMultistepScheduler()
        schedule.set_timesteps(4)
        latents = torch.randn(1, 4, 2, 6)
        for timestep in schedule.timesteps:
            prediction = model(torch.cat([latents, 0.5 * latents]), timestep.reshape(1).float())
            one, other = prediction.chunk(2)
            guided = one + guidance * (other - one)
            latents = schedule.step(guided, timestep, latents, return_dict=False)[0]
        return latents

    calls = ComponentCalls()
    (traced,) = calls.graphs([trace(sample, {"model": model}, {"guidance": Number(3.0)}, calls=calls)])
    program = run(traced, UNROLLED)
    assert not program.guards
    for guidance in (0.0, 1.0, 7.5):
        torch.manual_seed(1)
        with torch.no_grad():
            wanted = sample(guidance)
        torch.manual_seed(1)
        got = numbers(program, [torch.randn(1, 4, 2, 6)], guidance=guidance)
        assert difference(got, [wanted]) <= SCHEDULERS
