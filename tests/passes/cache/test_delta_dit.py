"""Δ-DiT of transformers with one stream and two, against diffusers, whose blocks are skipped by hand."""

from __future__ import annotations

from typing import Any

import pytest

from diffc.compiler.analysis.stages import calls
from diffc.compiler.errors import PassError
from diffc.compiler.ir.program import Program
from diffc.passes.cache.delta_dit import delta_dit
from diffc.passes.stage import stage
from diffc.runtime.program.verify import verify
from tests.deep import EACH, Skips, deep, deviation
from tests.tolerances import CACHED
from tests.zoo import ZOO
from tests.zoo.tracing import traced

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")

FRONT, REAR, HALF = range(3), range(1, 4), range(2, 4)
QUERY = "attn1.to_q.weight"
HALVES: Skips = [[], [(REAR, 0)], [], [(FRONT, 2)], []]
"""Three of four blocks in every other of five steps, with the switch in the middle."""


def cached(name: str, **options: Any) -> Program:
    """Cache in the program of a pipeline."""
    (found,) = delta_dit([deep(name).program], **options)
    return verify(found)


@pytest.mark.parametrize("name", EACH)
def test_a_program_draws_what_diffusers_draws_with_blocks_skipped_by_hand(name: str) -> None:
    wanted, whole = deep(name).draw(HALVES), deep(name).draw()
    found = deep(name).drawn(cached(name))
    assert deviation(found, wanted) <= CACHED
    assert deviation(whole, wanted) > 10 * CACHED, "the reuse must be seen"


@pytest.mark.parametrize(
    ("options", "skips"),
    [
        (
            {"interval": 3, "span": 0.5, "switch": 1.0},
            [[], [(range(2, 4), 0)], [(range(2, 4), 0)], [], [(range(2, 4), 3)]],
        ),
        ({"interval": 5, "span": 0.25, "switch": 0.0}, [[], *[[(range(1), 0)]] * 4]),
        ({"interval": 2, "span": 1.0}, [[], [(range(4), 0)], [], [(range(4), 2)], []]),
    ],
)
def test_options_say_which_blocks_and_steps(options: dict[str, Any], skips: Skips) -> None:
    wanted = deep("FluxPipeline").draw(skips)
    found = deep("FluxPipeline").drawn(cached("FluxPipeline", **options))
    assert deviation(found, wanted) <= CACHED


def test_skipped_blocks_are_not_called() -> None:
    """Every weight is in one piece, and the pieces of the first and the last block are called in four steps of five."""
    found = cached("PixArtAlphaPipeline")
    pieces = [graph for graph in found.graphs if "_piece_" in graph.name]
    counts = {
        name: len(calls(found, piece))
        for piece in pieces
        for name in piece.body.state_dict
        if "attn1.to_q.weight" in name
    }
    assert list(counts.values()) == [4, 3, 3, 4]


def test_interval_1_is_no_cache() -> None:
    program = deep("PixArtAlphaPipeline").program
    assert delta_dit([program], interval=1) == (program,)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"interval": 0}, "delta-dit: interval=0, span=0.75, switch=0.5"),
        ({"interval": 6}, "the interval is 6, and there are 5 evaluations"),
        ({"span": 1.5}, "span=1.5"),
        ({"span": 0.0}, "span=0,"),
        ({"switch": -0.5}, "switch=-0.5"),
    ],
)
def test_what_is_no_schedule_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(PassError, match=what) as refused:
        cached("PixArtAlphaPipeline", **options)
    assert refused.value.fix


def test_a_unet_is_refused_and_told_its_caches() -> None:
    programs = stage([traced(ZOO["StableDiffusionPipeline"]())])
    with pytest.raises(PassError, match="the denoiser is no transformer: .* do 3[0-9]% of the work") as refused:
        delta_dit(programs)
    assert "deepcache" in str(refused.value.fix)
