"""Reuse the outputs of residual blocks of the step before: in some steps, in a part of the denoiser.

Paper: Zhu et al., "A-SDM: Accelerating Stable Diffusion through Model Assembly and Feature Inheritance Strategies",
       https://arxiv.org/abs/2406.00210 (feature inheritance, which needs no training; not its smaller models)

Before (a ResNet):
    y0 = resnet(x0)
    x1 = linear(x0, y0)
    y1 = resnet(x1)

After (level='unit', interval=2, begin=0.0, end=1.0, stop=1.0):
    h0 = first(x0)
    b0 = branch(h0)
    y0 = last(h0, b0)
    x1 = linear(x0, y0)
    h1 = first(x1)
    y1 = last(h1, b0)

A residual block is ``x + f(x)`` or ``shortcut(x) + f(x)``, in a UNet or a transformer. At the level ``unit`` a step
inherits the residuals f(x); at ``layer`` the sums; at ``block`` runs of residual blocks of one size,
such as a UNet's levels are, inherit together. Steps are evaluations of the denoiser.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import fx

from diffc.compiler.analysis.residual_blocks import flow_of, regions
from diffc.compiler.analysis.work import multiply_adds
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.apply_schedule import Feature, Reuse, Schedule, cached, check_interval
from diffc.compiler.ir.program import Graph, Program

LEVELS = ("unit", "layer", "block")


def a_sdm(
    programs: Sequence[Program],
    *,
    level: str = "layer",
    begin: float = 0.25,
    end: float = 0.75,
    interval: int = 2,
    start: float = 0.0,
    stop: float = 1.0,
) -> tuple[Program, ...]:
    """Inherit from the part ``begin`` to the part ``end`` of the work that residual blocks do, in their order.

    From the part ``start`` of the steps to ``stop`` one of ``interval`` computes all, and so do the steps outside.
    Raises `PassError` for a graph without residual blocks there, and for impossible parts and intervals.
    """
    parts = 0 <= begin < end <= 1 and 0 <= start < stop <= 1
    if level not in LEVELS or interval < 1 or not parts:
        raise PassError(
            f"a-sdm: level={level}, begin={begin:g}, end={end:g}, interval={interval}, start={start:g}, stop={stop:g}",
            fix=f"give a level ({', '.join(LEVELS)}), an interval of 1 or more, and parts in order from 0 to 1",
        )

    def follow(program: Program, graph: Graph, count: int) -> Schedule:
        check_interval("a-sdm", interval, program, count)
        features = [feature for feature, middle in _features(graph, program, level) if begin <= middle < end]
        if not features:
            what = f"a-sdm: no {level} from {begin:.0%} to {end:.0%} of the residual blocks"
            raise PassError(what, where=graph.name, fix="give a wider part, or another level")
        first, last = round(start * count), round(stop * count)
        since = [(at - first) % interval if first <= at < last else 0 for at in range(count)]
        reuses = (tuple(Reuse(feature, at - since[at]) for feature in features if since[at]) for at in range(count))
        return Schedule(reuses)

    return cached(programs, follow)


@dataclass(frozen=True)
class _Unit:
    """Hold a residual block: its sum, its residual, and its multiply-adds."""

    sum: fx.Node
    branch: fx.Node
    work: int


def _units(graph: Graph, program: Program) -> Iterator[_Unit]:
    flow = flow_of(graph, [program])
    work = {node: multiply_adds(node) for node in flow}
    for nodes, branch in regions(flow, {node.name for node in flow if work[node]}):
        yield _Unit(nodes[-1], branch, sum(work[node] for node in nodes))


def _features(graph: Graph, program: Program, level: str) -> Iterator[tuple[Feature, float]]:
    """Yield the features that may be inherited, each with the part of all work before the middle of its block."""
    units, done = list(_units(graph, program)), 0.0
    total = sum(unit.work for unit in units)
    size = (lambda unit: unit.sum.meta["val"].numel()) if level == "block" else id
    for _, group in groupby(units, size):
        together = list(group)
        own = sum(unit.work for unit in together) / total
        for unit in together:
            yield Feature((unit.branch if level == "unit" else unit.sum).name), done + own / 2
        done += own
