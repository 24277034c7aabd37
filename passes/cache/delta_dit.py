"""Reuse the residual of a span of a transformer's blocks: of the rear blocks early, of the front blocks late.

Paper: Chen et al., "Δ-DiT: A Training-Free Acceleration Method Tailored for Diffusion Transformers", 2024,
       https://arxiv.org/abs/2406.01125 (the schedule: front blocks draw outlines, rear blocks details)

Before (a transformer):
    y0 = transformer(x0)
    x1 = linear(x0, y0)
    y1 = transformer(x1)

After (interval=2, span=0.5):
    h0 = embed(x0)
    d0 = front(h0)
    y0 = rear(d0)
    r0 = linear(d0, h0; 1, -1)
    x1 = linear(x0, y0)
    h1 = embed(x1)
    d1 = linear(r0, h1; 1, 1)
    y1 = rear(d1)

Every ``interval``-th step computes all blocks. Before the part ``switch`` of all steps, the steps between
compute the front blocks and add the stored residual of the rear ones; from then on they add that of the front blocks
and compute the rear ones. Steps are evaluations: a solver of second order has two for each step.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffc.compiler.analysis.transformer_blocks import isotropic
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.apply_schedule import Reuse, Schedule, cached, check_interval
from diffc.compiler.ir.program import Graph, Program


def delta_dit(
    programs: Sequence[Program], *, interval: int = 2, span: float = 0.75, switch: float = 0.5
) -> tuple[Program, ...]:
    """Compute all blocks in one of ``interval`` steps, and in the others all but the part ``span`` of them.

    Three quarters of the blocks in every other step are 1.6 times the speed, as in the paper. Raises `PassError` for a
    graph that is not mostly blocks of one width, for more steps than there are, and for impossible parts.
    """
    if interval < 1 or not 0 < span <= 1 or not 0 <= switch <= 1:
        raise PassError(
            f"delta-dit: interval={interval}, span={span:g}, switch={switch:g}",
            fix="give an interval of 1 or more, and parts from 0 to 1 of the blocks and of the steps",
        )

    def follow(program: Program, graph: Graph, count: int) -> Schedule:
        check_interval("delta-dit", interval, program, count)
        blocks_of_graph = isotropic(graph, [program], "delta-dit")
        blocks = len(blocks_of_graph.blocks)
        skipped = max(1, round(span * blocks))
        (rear,) = blocks_of_graph.features(range(blocks - skipped, blocks))
        (front,) = blocks_of_graph.features(range(skipped))
        spans = [rear if at < switch * count else front for at in range(count)]
        return Schedule(
            tuple(Reuse(feature, at - at % interval) for feature in each if at % interval)
            for at, each in enumerate(spans)
        )

    return cached(programs, follow)
