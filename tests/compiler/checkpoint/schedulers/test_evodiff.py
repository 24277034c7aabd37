"""EVODiff: against its formulas in NumPy, and against DPM++ 2M where the solution is known."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffc.compiler.checkpoint.schedulers import EVODiffScheduler
from tests.ode import (
    SCHEDULE,
    Mixture,
    distance,
    draw,
    evenly,
    gaussian,
    integrate,
    levels,
    measured_order,
    mixture,
    predicting,
)
from tests.tolerances import ORDER, SCHEDULERS

Array = NDArray[np.float64]


def sigmoid(value: Array) -> Array:
    return 1 / (1 + np.exp(-value))


def dot(one: Array, other: Array) -> Array:
    return np.einsum("bchw,bchw->bc", one, other)[:, :, None, None]


def transcribed(data: Mixture, sample: Tensor, grid: list[float], times: list[float]) -> Tensor:
    """Follow the formulas in the order in which they are given, with κ = σ/α, r_i and P as there.

    ``times`` are those of the levels, 1 to 1/N; the last step is Euler's.
    """
    steps, x = len(grid) - 1, sample.numpy()
    predictions = list[Array]()

    def predict(at: Array, i: int) -> Array:
        a, s = levels(grid[i])
        return (at - s * data.noise(torch.from_numpy(at), grid[i]).numpy()) / a

    sigmas = [levels(sigma)[1] for sigma in grid]
    predictions.append(predict(x, 0))
    for i in range(1, steps + 1):
        m0 = predictions[-1]
        h, ratio = (1 / grid[i] - 1 / grid[i - 1] if grid[i] else math.inf), sigmas[i] / sigmas[i - 1]
        if i == steps and not grid[i]:
            return torch.from_numpy(m0)
        euler = ratio * x + sigmas[i] * h * m0
        if i in (1, steps):
            x = euler
            predictions.append(predict(x, i) if i < steps else m0)
            continue
        m1 = predictions[-2]
        r = math.log(grid[i - 2] / grid[i - 1]) / math.log(grid[i - 1] / grid[i])
        t = (times[i] + times[-1]) / (1 + times[-1])
        w, base = 0.5 * (1 - t * t), math.sqrt(ratio / (sigmas[i - 1] / sigmas[i - 2]))
        b1 = (1 - w) * base + w * np.clip(dot(m0, m1) / dot(m1, m1), -2, 2)
        d1 = m0 - b1 * m1
        r_i = np.clip(sigmoid(0.25 * np.abs(b1)) * r, 0.25 * r, 1.5 * r)
        probe = euler + 0.5 * sigmas[i] * h / r_i * d1
        mt = predict(probe, i)
        b2 = (1 - w) * base + w * np.clip(dot(mt, m0) / dot(m0, m0), -2, 2)
        d2 = mt - b2 * m0
        behind, ahead = d1 / r / h, r / h * d2
        eta_star = 0.5 * np.clip(dot(ahead + behind, ahead - behind) / dot(ahead - behind, ahead - behind), -2, 2)
        eta = 0.5 * sigmoid(np.abs(eta_star))
        slope = -eta / r * d1 + (1 - eta) * r * d2
        p = probe - euler - 0.5 * sigmas[i] * h / r_i * slope
        zeta_star = np.clip(dot(p, d1) / dot(d1, d1), -2, 2) / (h * sigmas[i])
        if steps > 20:
            d = (m0 - m1) / h
            consistency = sigmoid(np.clip(dot(m0, d) / dot(d, d), -2, 2) * (2 - ratio**2))
            zeta = sigmoid(-(np.abs(zeta_star) - 0.5) * consistency)
        else:
            zeta = sigmoid(np.abs(zeta_star) - 0.5)
        x = euler + 0.5 * sigmas[i] * h / zeta * slope
        predictions.append(mt)
    return torch.from_numpy(x)


@pytest.mark.parametrize("end", [0.0, 0.05])
@pytest.mark.parametrize("steps", [2, 3, 10, 20, 21, 24])
def test_follows_the_formulas(steps: int, end: float) -> None:
    scheduler, sample = EVODiffScheduler(**SCHEDULE), draw(6, 2, 4, 8, 8)
    grid = [float(sigma) for sigma in np.geomspace(10.0, 0.1, steps)] + [end]
    scheduler.set_timesteps(steps)
    times = [(float(t) + 1) / 1000 for t in scheduler.timesteps] + [1 / 1000]
    drawn = integrate(scheduler, mixture().noise, sample, grid)
    assert distance(drawn, transcribed(mixture(), sample, grid, times)) < SCHEDULERS


def test_is_of_first_order() -> None:
    """Its gates do not tend to those of a second-order method: the correction tends to about half of what it takes."""
    assert abs(measured_order(lambda: EVODiffScheduler(**SCHEDULE), evenly, 160) - 1) < ORDER


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_is_no_worse_than_dpmpp_2m_at_few_steps(steps: int) -> None:
    sample = draw(7, 64, 4, 8, 8)
    dpmpp = diffusers.DPMSolverMultistepScheduler(**SCHEDULE)
    exact = integrate(dpmpp, mixture().noise, sample, 900)
    drawn, others = (integrate(s, mixture().noise, sample, steps) for s in (EVODiffScheduler(**SCHEDULE), dpmpp))
    assert distance(drawn, exact) < distance(others, exact)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_takes_what_the_model_predicts(prediction: str) -> None:
    """Noise, velocity and picture of the same data give the same result."""
    data, sample = gaussian(), draw(5, 1, 4, 4, 4)
    made: Any = EVODiffScheduler(**SCHEDULE, prediction_type=prediction)
    wanted = integrate(EVODiffScheduler(**SCHEDULE), data.noise, sample, 10)
    assert distance(integrate(made, predicting(data.noise, prediction), sample, 10), wanted) < SCHEDULERS


def test_a_channel_that_does_not_change_stays_finite() -> None:
    """The squared norm of no difference is 0, by which nothing is divided."""
    scheduler = EVODiffScheduler(**SCHEDULE, prediction_type="sample")
    drawn = integrate(scheduler, lambda x, sigma: torch.zeros_like(x), draw(5, 1, 4, 4, 4), 8)
    assert torch.equal(drawn, torch.zeros_like(drawn))


def test_starts_afresh_with_new_timesteps() -> None:
    scheduler, sample = EVODiffScheduler(**SCHEDULE), draw(5, 1, 4, 4, 4)
    first, second = (integrate(scheduler, gaussian().noise, sample, 5) for _ in range(2))
    assert torch.equal(first, second)
