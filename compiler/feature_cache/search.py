"""Search for what each evaluation of the denoiser reuses: the least error for every time, by dynamic programming.

Evaluations fall into runs. The first of a run computes all; the others reuse one and the same feature of it, which is
faster and wrong by so much. Within a run errors add up; those of several runs do too, or where they have nothing to do
with each other, their squares. So the best way to do the last evaluations does not depend on how the first were done
(Bellman, "Dynamic Programming", 1957).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffc.compiler.ir.program import Program

PARTS = 1000
"""Into how many parts the time is divided that computing everything takes."""


Way = tuple[tuple[int, int] | None, ...]
"""For each evaluation the one that it reuses a feature of, and which; None where it computes all."""


@dataclass(frozen=True)
class Found:
    """Hold a way to run, its time and its error."""

    reuses: Way
    seconds: float
    error: float


@dataclass(frozen=True)
class Tried:
    """Hold a schedule, what it takes of the time without a cache, and what its pictures are like, in dB.

    ``psnr`` is against pictures without a cache, ``drop`` how much further they are from those of twice as many steps.
    """

    way: Way
    time: float
    psnr: float
    drop: float | None
    fixed: bool

    def keeps(self, max_drop: float, min_psnr: float) -> bool:
        """Say whether pictures are as good as asked for."""
        if self.psnr < min_psnr:
            return False
        return min_psnr > 0 or (self.drop is not None and self.drop <= max_drop)


@dataclass(frozen=True)
class Searched:
    """Hold the programs, the schedule that they follow, and all that was tried."""

    programs: tuple[Program, ...]
    chosen: Tried
    tried: tuple[Tried, ...]

    @property
    def described(self) -> dict[str, Any]:
        """Say it as the bundle's files do."""
        return {"chosen": asdict(self.chosen), "tried": [asdict(each) for each in self.tried]}


def frontier(whole: float, reusing: Sequence[float], errors: NDArray[np.float64], *, power: int = 1) -> list[Found]:
    """List the ways that nothing beats in both time and error, from the fastest to the one that computes all.

    ``whole`` is the time of an evaluation that computes all, ``reusing`` of one that reuses each feature, and
    ``errors`` [features, evaluations, evaluations] what reusing a feature at the second of the first index's run costs:
    ``errors[f, at, source]``; infinity for what is not possible. Of runs the errors to a ``power`` add up.
    """
    features, count, _ = errors.shape
    unit = whole * count / PARTS
    steps = [round(whole / unit), *(round(each / unit) for each in reusing)]
    least = np.full((count + 1, count * steps[0] + 1), np.inf)  # of the first evaluations, in so many units of time
    least[0, 0] = 0.0
    came = np.full((*least.shape, 2), -1, np.int32)  # from which start of a run, with which feature
    for start in range(count):
        for feature in range(features):
            time, error = steps[0], 0.0
            for end in range(start + 1, count + 1):
                if end > start + 1:
                    time += steps[1 + feature]
                    error += errors[feature, end - 1, start]
                if not np.isfinite(error) or time >= least.shape[1]:
                    break
                tried = least[start, : least.shape[1] - time] + error**power
                better = tried < least[end, time:]
                least[end, time:][better] = tried[better]
                came[end, time:][better] = start, feature
    best, found = np.inf, list[Found]()
    for time in range(least.shape[1]):
        if least[count, time] < best:
            best = least[count, time]
            reuses = _traced(came, steps, count, time)
            seconds = sum(whole if each is None else reusing[each[1]] for each in reuses)
            found.append(Found(reuses, seconds, float(best) ** (1 / power)))
    return [a for a, b in pairwise(found) if b.seconds > a.seconds] + found[-1:]


def _traced(came: NDArray[np.int32], steps: Sequence[int], end: int, time: int) -> Way:
    """Follow the runs back from the end."""
    reuses: list[tuple[int, int] | None] = []
    while end:
        start, feature = map(int, came[end, time])
        reuses = [None, *[(start, feature)] * (end - start - 1), *reuses]
        time -= steps[0] + (end - start - 1) * steps[1 + feature]
        end = start
    return tuple(reuses)
