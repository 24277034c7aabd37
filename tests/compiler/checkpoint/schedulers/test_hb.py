"""Heavy ball: its parts by hand, its order of accuracy, and the stability that it is for."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import Tensor

from diffc.compiler.checkpoint.schedulers import HBScheduler
from tests.ode import SCHEDULE, distance, draw, evenly, gaussian, integrate, levels, measured_order, predicting
from tests.tolerances import ORDER, REWRITE, SCHEDULERS


def hb(order: float) -> HBScheduler:
    return HBScheduler(**SCHEDULE, fractional_order=order)


def test_follows_the_recurrence_written_out() -> None:
    """Order 2, β = 0.8, in x/α: the velocity starts at the first prediction."""
    data, sample, grid = gaussian(), draw(5, 1, 4, 4, 4), evenly(6)
    x, before, velocity = sample / levels(grid[0])[0], None, None
    for here, after in zip(grid, grid[1:], strict=False):
        e = data.noise(x * levels(here)[0], here)
        combined = e if before is None else 1.5 * e - 0.5 * before
        velocity = combined if velocity is None else 0.2 * velocity + 0.8 * combined
        x, before = x + (after - here) * velocity, e
    assert distance(integrate(hb(1.8), data.noise, sample, grid), x * levels(grid[-1])[0]) < REWRITE


def test_order_one_without_momentum_is_ddim() -> None:
    """To float32, in which the scheduler of diffusers computes."""
    sample = draw(5, 1, 4, 4, 4)
    ddim = diffusers.DPMSolverMultistepScheduler(**SCHEDULE, solver_order=1)
    wanted = integrate(ddim, gaussian().noise, sample, evenly(7))
    assert distance(integrate(hb(1.0), gaussian().noise, sample, evenly(7)), wanted) < SCHEDULERS


@pytest.mark.parametrize(("fractional", "order"), [(0.8, 1), (1.8, 1), (2.0, 2), (2.6, 1)])
def test_momentum_costs_the_order_of_accuracy(fractional: float, order: int) -> None:
    assert abs(measured_order(lambda: hb(fractional), evenly, 160) - order) < ORDER


def diverges(fractional: float, stiffness: float, scheduler: type[HBScheduler]) -> bool:
    """Say whether y' = -stiffness y blows up in 200 unit steps of σ/α."""

    def noise(sample: Tensor, sigma: float) -> Tensor:
        return stiffness * sample / levels(sigma)[0]

    made = scheduler(**SCHEDULE, fractional_order=fractional)
    grid = [float(sigma) for sigma in range(201, 0, -1)]
    start = torch.full((1, 1, 1, 1), levels(grid[0])[0], dtype=torch.float64)
    return float(integrate(made, noise, start, grid).abs().max()) / levels(grid[-1])[0] > 1.0


def limit(fractional: float, scheduler: type[HBScheduler] = HBScheduler) -> float:
    """Find the largest stable stiffness by bisection."""
    stable, unstable = 0.0, 16.0
    while unstable - stable > 0.02:
        middle = (stable + unstable) / 2
        stable, unstable = (stable, middle) if diverges(fractional, middle, scheduler) else (middle, unstable)
    return stable


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.8])
def test_momentum_widens_the_stable_region(beta: float) -> None:
    """The root -1 of the characteristic polynomial: 2 (2 - β)/β for Euler, half of that for order 2."""
    assert abs(limit(beta) - min(16.0, 2 * (2 - beta) / beta)) < 0.05
    assert limit(1 + beta) > limit(2.0)
    assert abs(limit(2.0) - 1.0) < 0.05


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_takes_what_the_model_predicts(prediction: str) -> None:
    """Noise, velocity and picture of the same data give the same result."""
    data, sample = gaussian(), draw(5, 1, 4, 4, 4)
    made = HBScheduler(**SCHEDULE, prediction_type=prediction)
    expected = integrate(hb(1.8), data.noise, sample, 10)
    assert distance(integrate(made, predicting(data.noise, prediction), sample, 10), expected) < REWRITE


def test_starts_afresh_with_new_timesteps() -> None:
    scheduler, sample = hb(2.6), draw(5, 1, 4, 4, 4)
    first, second = (integrate(scheduler, gaussian().noise, sample, 5) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("order", [0.0, -1.0, 5.5])
def test_rejects_an_order_that_has_no_weights(order: float) -> None:
    with pytest.raises(ValueError, match=f"fractional_order is {order}, not above 0 and at most 5"):
        hb(order)
