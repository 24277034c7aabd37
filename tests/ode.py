"""Sampling problems whose solution is known: data for which the best prediction of the noise has a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
Noise = Callable[[Tensor, float], Tensor]
"""Predicts the noise of a sample, given its level σ/α."""


def levels(sigma: float) -> tuple[float, float]:
    """Split a level σ/α into α and σ, whose squares add up to one."""
    alpha = 1 / math.sqrt(1 + sigma * sigma)
    return alpha, sigma * alpha


@dataclass(frozen=True)
class Gaussian:
    """Data that is normal in every pixel."""

    mean: Tensor
    deviation: Tensor

    def noise(self, sample: Tensor, sigma: float) -> Tensor:
        """Give the expected noise."""
        a, s = levels(sigma)
        return s * (sample - a * self.mean) / (a * a * self.deviation**2 + s * s)

    def solution(self, sample: Tensor, start: float, end: float) -> Tensor:
        """Follow the sampler's equation from one level to another: quantiles stay quantiles."""
        (a, s), (b, t) = levels(start), levels(end)
        spread = torch.sqrt((b * b * self.deviation**2 + t * t) / (a * a * self.deviation**2 + s * s))
        return b * self.mean + (sample - a * self.mean) * spread


@dataclass(frozen=True)
class Mixture:
    """Data that is one of some pictures, blurred by a little noise."""

    pictures: Tensor
    deviation: float

    def noise(self, sample: Tensor, sigma: float) -> Tensor:
        """Give the expected noise."""
        a, s = levels(sigma)
        variance = a * a * self.deviation**2 + s * s
        away = sample[:, None] - a * self.pictures
        share = torch.softmax(-(away**2).sum((2, 3, 4)) / (2 * variance), dim=1)
        clean = self.pictures + a * self.deviation**2 / variance * away
        return (sample - a * (share[:, :, None, None, None] * clean).sum(1)) / s


def draw(seed: int, *shape: int) -> Tensor:
    """Draw normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian() -> Gaussian:
    """Give a Gaussian with a mean and a deviation for every pixel."""
    return Gaussian(draw(1, 1, 4, 4, 4), 0.3 + 0.8 * torch.sigmoid(draw(2, 1, 4, 4, 4)))


def mixture() -> Mixture:
    """Give a mixture of six pictures."""
    return Mixture(1.2 * draw(3, 6, 4, 1, 1) + 0.3 * draw(4, 6, 4, 8, 8), 0.25)


def integrate(scheduler: Any, noise: Noise, sample: Tensor, sigmas: Sequence[float] | int) -> Tensor:
    """Let a scheduler take its steps, at the given levels or at as many of its own, in float64."""
    given = None if isinstance(sigmas, int) else torch.tensor(np.asarray(sigmas), dtype=torch.float64)
    scheduler.set_timesteps(sigmas if given is None else len(given) - 1)
    scheduler.sigmas = scheduler.sigmas.double() if given is None else given
    for index, timestep in enumerate(scheduler.timesteps):
        output = noise(sample, float(scheduler.sigmas[index]))
        sample = scheduler.step(output, timestep, sample).prev_sample
    return sample


def predicting(noise: Noise, prediction: str) -> Noise:
    """Return a model of the same data that predicts ``epsilon``, ``v_prediction`` or ``sample``."""

    def predicted(x: Tensor, sigma: float) -> Tensor:
        (a, s), epsilon = levels(sigma), noise(x, sigma)
        clean = (x - s * epsilon) / a
        return {"epsilon": epsilon, "v_prediction": a * epsilon - s * clean, "sample": clean}[prediction]

    return predicted


def distance(one: Tensor, other: Tensor) -> float:
    """Give the norm of the difference, relative."""
    return float((one - other).norm() / other.norm())


def measured_order(make: Callable[[], Any], sigmas: Callable[[int], Sequence[float]], steps: int) -> float:
    """Give the power of the step size at which the error falls when the number of steps is doubled."""
    data, sample = gaussian(), draw(5, 1, 4, 4, 4)
    errors = [
        distance(integrate(make(), data.noise, sample, grid), data.solution(sample, grid[0], grid[-1]))
        for grid in (sigmas(steps), sigmas(2 * steps))
    ]
    return math.log2(errors[0] / errors[1])


def evenly(steps: int) -> Sequence[float]:
    """Space levels evenly from 8 to 1."""
    return [float(sigma) for sigma in np.linspace(8.0, 1.0, steps + 1)]
