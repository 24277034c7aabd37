"""Numbers of the request in small samplers, written by hand: followed where that is exact, guarded elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Guard, Input, Type
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Image
from diffc.compiler.tracing.trace import capture, trace
from diffc.runtime.program.verify import verify
from tests.random_programs import draws, numbers
from tests.small_models import Model


def guided(model: nn.Module) -> Callable[..., torch.Tensor]:
    """Give a sampler with guidance."""

    def sample(guidance: float = 4.0) -> torch.Tensor:
        latents = torch.randn(2, 3)
        one, other = model(latents), model(2 * latents)
        return one + guidance * (other - one) if guidance > 1 else one

    return sample


def test_a_number_of_the_request_is_followed() -> None:
    model = Model()
    program = verify(capture(guided(model), {"model": model}))
    assert program.inputs == (Input("guidance", Type("scalar"), 4.0),)
    assert program.guards == (Guard("guidance", ">", 1.0),)
    noises = draws(program)
    for guidance in (1.5, 4.0, 30.0):
        torch.manual_seed(0)
        one, other = (numbers(program, noises, guidance=g)[0] for g in (guidance, 4.0))
        with torch.no_grad():
            a, b = model(noises[0]), model(2 * noises[0])
        assert torch.allclose(one, a + guidance * (b - a), rtol=1e-5, atol=1e-6)
        assert guidance == 4.0 or not torch.equal(one, other)


def test_a_number_that_goes_through_a_curve_is_fixed() -> None:
    def sample(guidance: float = 4.0) -> torch.Tensor:
        return torch.randn(3) * torch.tensor(float(guidance)).sin()

    assert capture(sample, {}).guards == (Guard("guidance", "==", 4.0),)


def test_a_number_that_bounds_a_clamp_is_fixed() -> None:
    def sample(limit: float = 2.0) -> torch.Tensor:
        return torch.randn(3).clamp(-limit, limit)

    assert capture(sample, {}).guards == (Guard("limit", "==", 2.0),)


def test_the_range_of_a_picture_answers_questions_about_its_numbers() -> None:
    def sample(image: torch.Tensor) -> torch.Tensor:
        if image.min().item() < 0 or image.max().item() > 1:
            raise ValueError("out of range")
        return image + torch.randn(image.shape)

    made = trace(sample, {}, {"image": Image((1, 3, 4, 4))}, calls=ComponentCalls())
    assert made.guards == ()

    def asks(image: torch.Tensor) -> torch.Tensor:
        return image if image.mean().item() > 0.5 else -image

    with pytest.raises(CaptureError, match="between 0.0 and 1.0 is compared with 0.5"):
        trace(asks, {}, {"image": Image((1, 3, 4, 4))}, calls=ComponentCalls())


def test_a_number_that_changes_the_program_is_fixed() -> None:
    longest = 0

    def sample(times: float = 2.0) -> torch.Tensor:
        nonlocal longest
        latents = torch.randn(3)
        for time in range(int(times)):
            latents, longest = latents.abs(), max(longest, time)
        return latents

    assert capture(sample, {}).guards == (Guard("times", "==", 2.0),)
    assert longest < 10  # traces at far values end where they are longer than the first
