"""Generalized heavy ball: Adams–Bashforth at its ends, the order it keeps, and the stability it buys."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from torch import Tensor

from diffc.compiler.checkpoint.schedulers import GHVBScheduler, HBScheduler
from tests.compiler.checkpoint.schedulers.test_hb import limit
from tests.ode import SCHEDULE, distance, draw, evenly, gaussian, integrate, levels, measured_order
from tests.tolerances import ORDER, REWRITE


def ghvb(order: float) -> GHVBScheduler:
    return GHVBScheduler(**SCHEDULE, fractional_order=order)


def test_a_whole_number_is_ipndm_of_diffusers() -> None:
    """The scheduler of diffusers takes velocities on noise levels of its own: give it ours."""
    data, sample, grid = gaussian(), draw(5, 1, 4, 4, 4), evenly(9)
    ipndm = diffusers.IPNDMScheduler()
    ipndm.set_timesteps(len(grid) - 1)
    ipndm.alphas, ipndm.betas = torch.tensor([levels(sigma) for sigma in grid], dtype=torch.float64).unbind(1)
    x = sample
    for sigma, timestep in zip(grid, ipndm.timesteps, strict=False):
        (a, s), noise = levels(sigma), data.noise(x, sigma)
        x = ipndm.step(a * noise - s * (x - s * noise) / a, timestep, x).prev_sample
    assert distance(integrate(ghvb(4.0), data.noise, sample, grid), x) < REWRITE


def test_as_momentum_takes_over_order_two_becomes_order_one() -> None:
    data, sample = gaussian(), draw(5, 1, 4, 4, 4)
    drawn = integrate(ghvb(1 + 1e-7), data.noise, sample, evenly(9))
    assert distance(drawn, integrate(ghvb(1.0), data.noise, sample, evenly(9))) < 1e-6


WEIGHTS = {2: (2.8 / 1.6, -1.2 / 1.6), 3: (22 / 9.6, -17.6 / 9.6, 5.2 / 9.6)}
"""The paper's weights at β = 0.8: of order 2, ((2 + β) v - (2 - β) v')/2β; of order 3, over 12β, 18 + 5β, ..."""


@pytest.mark.parametrize("order", WEIGHTS)
def test_follows_the_recurrence_written_out(order: int) -> None:
    data, sample, grid = gaussian(), draw(5, 1, 4, 4, 4), evenly(order)
    velocities = list[Tensor]()

    def noise(x: Tensor, sigma: float) -> Tensor:
        e = data.noise(x, sigma)
        velocities.insert(0, 0.2 * velocities[0] + 0.8 * e if velocities else e)
        return e

    scheduler, states = ghvb(order - 0.2), [sample]
    for count in range(1, order + 1):
        velocities.clear()
        states.append(integrate(scheduler, noise, sample, grid[: count + 1]))
    moved = states[-1] / levels(grid[-1])[0] - states[-2] / levels(grid[-2])[0]
    wanted = sum(w * v for w, v in zip(WEIGHTS[order], velocities, strict=True)) * (grid[-1] - grid[-2])
    assert distance(moved, wanted) < REWRITE


@pytest.mark.parametrize(("fractional", "order"), [(0.8, 1), (1.2, 2), (1.8, 2), (2.0, 2), (2.8, 3)])
def test_keeps_its_order_of_accuracy(fractional: float, order: int) -> None:
    assert abs(measured_order(lambda: ghvb(fractional), evenly, 320) - order) < ORDER


@pytest.mark.parametrize("fractional", [1.5, 2.4, 3.7, 4.8])
def test_integrates_polynomials_of_its_order_exactly(fractional: float) -> None:
    """Far from the start, whose low orders would hide it: of degree k - 1 in the level exactly, of degree k not."""
    grid = [4.0 - 0.02 * i for i in range(151)]
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def error(degree: int) -> float:
        def noise(x: Tensor, sigma: float) -> Tensor:
            return torch.full_like(x, sigma**degree)

        earlier, later = (integrate(ghvb(fractional), noise, zero, levels_) for levels_ in (grid[:-50], grid))
        moved = float(later) / levels(grid[-1])[0] - float(earlier) / levels(grid[-51])[0]
        exact = (grid[-1] ** (degree + 1) - grid[-51] ** (degree + 1)) / (degree + 1)
        return abs(moved / exact - 1)

    order = math.ceil(fractional)
    assert error(order - 1) < REWRITE < error(order)


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.8])
def test_stability_lies_between_the_orders(beta: float) -> None:
    """The root -1 of the characteristic polynomial of order 2 gives 2 - β; Adams–Bashforth of order 2 gives 1."""
    assert abs(limit(1 + beta, GHVBScheduler) - (2 - beta)) < 0.05
    assert limit(2 + beta, GHVBScheduler) > limit(3.0, GHVBScheduler)


def test_is_more_accurate_than_heavy_ball() -> None:
    data, sample, grid = gaussian(), draw(5, 1, 4, 4, 4), evenly(40)
    wanted = data.solution(sample, grid[0], grid[-1])
    errors = [
        distance(integrate(kind(**SCHEDULE, fractional_order=1.8), data.noise, sample, grid), wanted)
        for kind in (HBScheduler, GHVBScheduler)
    ]
    assert errors[1] < 0.5 * errors[0]
