"""The features that a search tries, and its schedule in programs of other numbers of steps."""

from __future__ import annotations

from diffc.compiler.analysis.stages import denoiser
from diffc.passes.cache.auto.trials import features_to_try, following
from tests.deep import deep


def test_spans_of_blocks_are_tried_the_longest_first() -> None:
    program = deep("PixArtAlphaPipeline").program
    graph = denoiser(program)
    assert graph is not None
    options = features_to_try(graph, [program])
    assert len(options) == len(set(options)) > 1 and all(options)
    assert all(feature.base for option in options for feature in option), "blocks add to what they read"


def test_a_schedule_is_followed_at_the_nearest_time() -> None:
    program = deep("PixArtAlphaPipeline").program
    graph = denoiser(program)
    assert graph is not None
    schedule = following((None, (0, 1), None, (2, 0)))
    first, second, *_ = features_to_try(graph, [program])
    sources = [[reuse.source for reuse in reuses] for reuses in schedule(program, graph, 8)]
    assert sources == [[], [], [1] * len(second), [1] * len(second), [], [], [5] * len(first), [5] * len(first)]
    assert [list(reuses) for reuses in schedule(program, graph, 1)] == [[]]
