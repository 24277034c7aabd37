"""Reuse the output of the UNet's deep levels, and compute the outer ones only, in all but every n-th step.

Paper: Ma et al., "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024,
       https://arxiv.org/abs/2312.00858 (the uniform schedule, and as in its code the one that is dense around a step)

Before (a UNet):
    y0 = unet(x0)
    x1 = linear(x0, y0)
    y1 = unet(x1)

After (interval=2):
    h0 = outer_down(x0)
    d0 = deep(h0)
    y0 = outer_up(h0, d0)
    x1 = linear(x0, y0)
    h1 = outer_down(x1)
    y1 = outer_up(h1, d0)

Steps are evaluations: a solver of second order has two for each step. The feature of branch ``m`` is the value that
is concatenated with the skip connection that has ``m`` others around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffc.compiler.analysis.skip_connections import skips
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.apply_schedule import Feature, Reuse, Schedule, cached, check_interval, since
from diffc.compiler.ir.program import Graph, Program

CENTER = 0.3
"""The default center of the quadratic schedule, as a part of all steps: the paper's 15 of 50."""


def deepcache(
    programs: Sequence[Program],
    *,
    interval: int = 3,
    branch: int = 0,
    schedule: str = "uniform",
    center: int | None = None,
    power: float = 1.4,
) -> tuple[Program, ...]:
    """Compute all levels in one of ``interval`` steps; in the others, reuse the levels inside of skip ``branch``.

    The schedule is ``uniform``, or ``quadratic``: denser around the step ``center``, the more so the larger ``power``.
    Raises `PassError` for a graph without skip connections, and for a schedule or branch that the program lacks.
    """
    if interval < 1 or schedule not in ("uniform", "quadratic"):
        raise PassError(
            f"deepcache: interval={interval}, schedule={schedule}",
            fix="give an interval of 1 or more, and uniform or quadratic as the schedule",
        )

    def follow(program: Program, graph: Graph, count: int) -> Schedule:
        check_interval("deepcache", interval, program, count)
        refresh = _uniform(count, interval)
        if schedule == "quadratic":
            around = round(CENTER * count) if center is None else center
            refresh = _quadratic(count, len(refresh), around, power)
        feature = _feature(graph, program, branch)
        last = enumerate(since(refresh, count))
        return Schedule((Reuse(feature, source),) if source != at else () for at, source in last)

    return cached(programs, follow)


def _feature(graph: Graph, program: Program, branch: int) -> Feature:
    connections = skips(graph, [program])
    if not connections:
        fix = "choose delta-dit, profiling-dit, cachequant or a-sdm, which reuse residual blocks"
        raise PassError("deepcache: the denoiser has no skip connections", where=graph.name, fix=fix)
    if not 0 <= branch < len(connections):
        what = f"deepcache: branch {branch} of {len(connections)} skip connections"
        raise PassError(what, where=graph.name, fix=f"give a branch from 0, the cheapest, to {len(connections) - 1}")
    return Feature(connections[branch].up)


def _uniform(count: int, interval: int) -> list[int]:
    return list(range(0, count, interval))


def _quadratic(count: int, number: int, center: int, power: float) -> list[int]:
    """Spread ``number`` steps as the paper's code does: evenly between the roots of both ends, in the complex plane.

    The distance from the center, to the power of 1/power, is spread evenly, and its real part rounded towards the
    center; the power falls until ``number`` different steps are left.
    """
    if not 0 < center < count:
        fix = f"give a center from 1 to {count - 1}"
        raise PassError(f"deepcache: the center is step {center} of {count}", fix=fix)
    while power > 1:
        first, last = (complex(end) ** (1 / power) for end in (-center, count - center))
        places = np.linspace(first, last, number + 1) ** power
        inner = sorted({int(place) for place in places.real})[1:-1]
        if len(inner) == number - 1:
            return [0, *(center + each for each in inner)]
        power -= 0.02
    what = f"deepcache: no {number} of {count} steps are dense around step {center}"
    raise PassError(what, fix="give another center or interval, or schedule=uniform")
