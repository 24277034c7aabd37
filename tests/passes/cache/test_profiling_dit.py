"""ProfilingDiT against diffusers: what its attention modules look at, and pictures with blocks skipped by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffc.compiler.analysis.stages import denoisers
from diffc.compiler.analysis.transformer_blocks import isotropic
from diffc.compiler.errors import PassError
from diffc.compiler.ir.program import Program
from diffc.passes.cache.profiling_dit import _foreground, _Profile, _runs, profiling_dit
from diffc.passes.stage import stage
from diffc.runtime.program.verify import verify
from tests.deep import Skips, deep, deviation
from tests.tolerances import CACHED, PROFILE
from tests.zoo import ZOO
from tests.zoo.tracing import traced

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")


LAYOUT = {
    "PixArtAlphaPipeline": slice(None),
    "StableDiffusion3Pipeline": slice(0, -32),
    "FluxPipeline": slice(16, None),
}
"""Which of the tokens that look at each other are the picture's."""


def profile(name: str) -> _Profile:
    """Profile a pipeline's transformer."""
    program = deep(name).program
    (graph,) = denoisers([program])
    return _Profile(graph, isotropic(graph, [program], "x"), program, deep(name).calibrated())


def cached(name: str, **options: Any) -> Program:
    """Cache in the program of a pipeline."""
    (found,) = profiling_dit([deep(name).program], deep(name).calibrated, **options)
    return verify(found)


@pytest.mark.parametrize("name", LAYOUT)
def test_ratios_are_those_of_the_attention_that_diffusers_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention is watched where diffusers calls it."""
    found, tokens = profile(name), LAYOUT[name]
    (front,) = found.foreground.values()
    sums, original = torch.zeros(4, 2), torch.nn.functional.scaled_dot_product_attention
    seen = list[torch.Tensor]()

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if query.shape == key.shape:
            weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
            seen.append(weights.mean(1)[:, tokens, tokens].mean(1))
        return original(query, key, value, *args, **kwargs)

    def watched(call: int, block: int, *_: object) -> None:
        drawn = next(each for each in seen if each.shape == front.shape)  # the text has others
        seen.clear()
        sums[block] += torch.stack([drawn[front].mean(), drawn[~front].mean()])

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    deep(name).draw(watch=watched)
    assert found.ratios() == pytest.approx([float(a / b) for a, b in sums], rel=PROFILE)
    assert len(set(found.ratios())) == 4


def test_the_foreground_is_what_differs_from_most() -> None:
    random = torch.Generator().manual_seed(0)
    tokens = 5 + 0.1 * torch.randn(2, 40, 8, generator=random)
    wanted = torch.zeros(2, 40, dtype=torch.bool)
    wanted[0, 3:9], wanted[1, 30:] = True, True
    tokens[wanted] += 2 + torch.rand(16, 8, generator=random)
    assert torch.equal(_foreground(tokens), wanted)


@pytest.mark.parametrize(
    ("share", "wanted"),
    [
        (None, [range(1), range(2, 4)]),
        (0.2, [range(2, 3)]),
        (0.8, [range(4)]),
        (1.0, [range(5)]),
    ],
)
def test_runs_of_blocks_are_joined(share: float | None, wanted: list[range]) -> None:
    assert _runs([0.9, 1.1, 0.5, 0.8, 2.0], share) == wanted


@pytest.mark.parametrize(("name", "share"), [("PixArtAlphaPipeline", 0.5), ("FluxPipeline", 0.75)])
def test_a_program_draws_what_diffusers_draws_with_blocks_skipped_by_hand(name: str, share: float) -> None:
    runs = _runs(profile(name).ratios(), share)
    skips: Skips = [[], [], [(run, 1) for run in runs], [], [(run, 3) for run in runs]]
    found = deep(name).drawn(cached(name, interval=2, warmup=0.2, share=share))
    wanted = deep(name).draw(skips)
    assert deviation(found, wanted) <= CACHED
    assert deviation(deep(name).draw(), wanted) > 10 * CACHED, "the reuse must be seen"


def test_interval_1_is_no_cache() -> None:
    program = deep("PixArtAlphaPipeline").program
    assert profiling_dit([program], deep("PixArtAlphaPipeline").calibrated, interval=1, share=0.5) == (program,)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"interval": 0}, "interval=0, warmup=0.12, share=None"),
        ({"share": 0.0}, "share=0.0"),
        ({"share": 2}, "share=2"),
        ({"warmup": 1.2}, "warmup=1.2"),
        ({"warmup": 0.8}, "4 of 5 evaluations warm up"),
    ],
)
def test_what_is_no_schedule_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(PassError, match=what) as refused:
        cached("PixArtAlphaPipeline", **options)
    assert refused.value.fix


def test_a_transformer_without_attention_is_refused() -> None:
    programs = stage([traced(ZOO["SanaPipeline"]())])
    with pytest.raises(PassError, match="no attention from token to token") as refused:
        profiling_dit(programs, lambda _: None, interval=2, warmup=0.0)  # type: ignore[arg-type,return-value]
    assert "delta-dit" in str(refused.value.fix)
