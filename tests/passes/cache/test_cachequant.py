"""CacheQuant of a tiny UNet and a tiny transformer, against a search of all partitions and NumPy's least squares."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from diffc.compiler.analysis.stages import denoisers
from diffc.compiler.calibration.calibrate import Calibration, Calibrator
from diffc.compiler.errors import PassError
from diffc.compiler.ir.program import Program
from diffc.passes.cache.cachequant import _features, _Pairs, _parted, cachequant
from diffc.runtime.program.verify import verify
from tests.compiler.feature_cache.test_apply_schedule import TIMES, TOKENS, Denoiser, Kept, UNet, by_hand, run, together
from tests.deep import deep, deviation
from tests.tolerances import CACHED, FITTED

STEPS = range(len(TIMES))
SEED = 3
"""The seed of the noise that by_hand draws."""


class Joined(UNet):
    """Keep what meets the skip connection: the deep feature with the time added."""

    def parts(
        self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, kept: Kept | None = None
    ) -> tuple[torch.Tensor, Kept]:
        """Compute as the UNet does."""
        time = torch.tanh(self.time(timestep[:, None] / 1000))[:, :, None, None]
        first = torch.tanh(self.into(sample))
        deep = kept["deep"] if kept else self.deep(first, time, text) + time
        return self.out(torch.cat([deep, torch.tanh(first + time)], 1)), {"deep": deep}


@cache
def tokenizer() -> bytes:
    """Make the tokenizer that gives the ids which by_hand reads: ones."""
    made = Tokenizer(WordLevel({"a": 1, "b": 0}, unk_token="b"))
    made.pre_tokenizer = WhitespaceSplit()
    return made.to_str().encode()


def calibrated(program: Program) -> Calibration:
    """Look at the trajectory that by_hand computes."""
    return Calibrator({"words": tokenizer()}, prompts=(" ".join("a" * TOKENS),), seed=SEED)(program)


def traced(model: Denoiser, key: str, **options: Any) -> list[np.ndarray[Any, Any]]:
    """Record a feature in each step of a whole run, as [channels, numbers]."""
    found = list[torch.Tensor]()
    original = model.parts

    def recorded(*args: Any) -> Any:
        made = original(*args)
        found.append(made[1][key])
        return made

    model.parts = recorded  # type: ignore[method-assign]
    by_hand(model, STEPS, **options)
    del model.parts
    return [each.movedim(1 if each.dim() == 4 else -1, 0).flatten(1).numpy() for each in found]


def test_the_partition_is_the_best_of_all() -> None:
    random = np.random.default_rng(0)
    for count, interval in ((7, 2), (9, 3), (8, 4), (5, 5)):
        distance = {(a, b): float(random.random()) for a in range(count) for b in range(count)}
        least, most, number = max(1, interval // 2), 2 * interval, -(-count // interval)
        sizes = [each for each in product(range(least, most + 1), repeat=number) if sum(each) == count]

        def cost(each: tuple[int, ...], distance: Any = distance) -> float:
            begins = np.cumsum((0, *each))
            return sum(distance[a, t] for a, b in zip(begins, begins[1:], strict=False) for t in range(a + 1, b))

        best = min(sizes, key=cost)
        wanted = [begin for begin, size in zip(np.cumsum((0, *best)), best, strict=False) for _ in range(size)]
        assert [_parted(range(count), interval, distance)[at] for at in range(count)] == wanted


def test_a_unet_reuses_what_numpy_fits() -> None:
    model = Joined()
    (program,) = together(model, 5)
    (found,) = cachequant([program], calibrated, interval=3)
    seen = traced(model, "deep")
    apart = {(a, b): np.abs(seen[b] - seen[a]).mean() / np.abs(seen[b]).mean() for a, b in combinations(STEPS, 2)}
    sources = [_parted(STEPS, 3, apart)[at] for at in STEPS]

    def correct(step: int, kept: torch.Tensor) -> torch.Tensor:
        fits = [np.polyfit(x, y, 1) for x, y in zip(seen[sources[step]], seen[step], strict=True)]
        factor, term = torch.tensor(np.array(fits), dtype=torch.float32).T
        return kept * factor[:, None, None] + term[:, None, None]

    wanted, plain, whole = (by_hand(model, sources, correct=correct), by_hand(model, sources), by_hand(model, STEPS))
    assert deviation(run(found), wanted) <= FITTED
    assert deviation(wanted, whole) < deviation(plain, whole), "the correction must help"
    assert deviation(wanted, whole) > 3 * FITTED, "the reuse must be seen"
    (uncorrected,) = cachequant([program], calibrated, interval=3, correct=False)
    assert deviation(run(uncorrected), plain) <= FITTED


def test_the_lanes_of_a_step_are_compared_with_themselves() -> None:
    """Both branches of guidance are fitted together, but never one to the other."""
    model = Joined()
    (program,) = together(model, 5, guided=True)
    graph = denoisers([program])[0]
    feature = _features(graph, program, 0, 0.5)[0]
    pairs = _Pairs(graph, program, [feature], 3)
    pairs.look(calibrated(program))
    seen = traced(model, "deep", guided=True)
    for before, step in ((0, 1), (1, 3)):
        x, y = (np.concatenate(seen[2 * at : 2 * at + 2], 1) for at in (before, step))
        fits = np.array([np.polyfit(a, b, 1) for a, b in zip(x, y, strict=True)]).T
        for table, wanted in zip(pairs.correction(feature, before, step), fits, strict=True):
            assert deviation(torch.tensor(table.data).flatten(), torch.tensor(wanted)) <= FITTED
    assert (0, 3) not in pairs.distance, "out of reach"


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_in_a_transformer_the_blocks_in_the_middle_are_reused() -> None:
    name = "PixArtAlphaPipeline"
    (found,) = cachequant([deep(name).program], deep(name).calibrated, interval=5, span=0.5, correct=False)
    wanted = deep(name).draw([[], *[[(range(1, 3), 0)]] * 4])
    assert deviation(deep(name).drawn(verify(found)), wanted) <= CACHED


def test_interval_1_is_no_cache() -> None:
    programs = together(UNet(), 5)
    assert cachequant(programs, calibrated, interval=1) == programs


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"interval": 0}, "interval=0"),
        ({"interval": 6}, "the interval is 6, and there are 5 evaluations"),
        ({"span": 0.0}, "span=0"),
        ({"branch": 2}, "branch 2 of 2 skip connections"),
    ],
)
def test_what_is_no_schedule_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(PassError, match=what) as refused:
        cachequant(together(UNet(), 5), calibrated, **options)
    assert refused.value.fix
