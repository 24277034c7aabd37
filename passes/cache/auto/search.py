"""Search for the feature that each evaluation of the denoiser reuses: the least error for every time.

The evaluations are divided into runs. The first of a run computes all; the others reuse one feature of it, which is
faster and adds an error. Errors add up within a run and over runs, or for independent runs their squares do. So the
best choice for the last evaluations does not depend on the first: dynamic programming (Bellman, "Dynamic
Programming", 1957).
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
"""The number of units into which the time without reuse is divided."""


Reuses = tuple[tuple[int, int] | None, ...]
"""For each evaluation the source and the index of the feature that it reuses; None where it computes all."""


@dataclass(frozen=True)
class Candidate:
    """Hold a schedule, its time and its error."""

    reuses: Reuses
    seconds: float
    error: float


@dataclass(frozen=True)
class Trial:
    """Hold a schedule, its time relative to that without a cache, and the PSNR of its images in dB.

    ``psnr`` is relative to the images without a cache, ``drop`` the loss relative to those of twice as many steps.
    """

    reuses: Reuses
    time: float
    psnr: float
    drop: float | None
    fixed: bool

    def keeps(self, max_drop: float, min_psnr: float) -> bool:
        """Return whether the images meet the requested limits."""
        if self.psnr < min_psnr:
            return False
        return min_psnr > 0 or (self.drop is not None and self.drop <= max_drop)


@dataclass(frozen=True)
class Searched:
    """Hold the programs, the trial of their schedule, and all trials."""

    programs: tuple[Program, ...]
    best: Trial
    trials: tuple[Trial, ...]

    @property
    def described(self) -> dict[str, Any]:
        """Return the trials as the bundle's files record them."""
        return {"chosen": _record(self.best), "tried": [_record(trial) for trial in self.trials]}


def _record(trial: Trial) -> dict[str, Any]:
    return {"way" if key == "reuses" else key: value for key, value in asdict(trial).items()}


def frontier(full: float, reusing: Sequence[float], errors: NDArray[np.float64], *, power: int = 1) -> list[Candidate]:
    """List the Pareto-optimal schedules in time and error, from the fastest to the one that computes all.

    ``full`` is the time of an evaluation that computes all, ``reusing`` of one that reuses each feature, and
    ``errors[feature, at, source]`` the error of evaluation ``at`` that reuses a feature of ``source``; infinity where
    that is impossible. The errors of runs add up to a ``power``.
    """
    features, count, _ = errors.shape
    unit = full * count / PARTS
    steps = [round(full / unit), *(round(time / unit) for time in reusing)]
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
    best, candidates = np.inf, list[Candidate]()
    for time in range(least.shape[1]):
        if least[count, time] < best:
            best = least[count, time]
            reuses = _traced(came, steps, count, time)
            seconds = sum(full if reuse is None else reusing[reuse[1]] for reuse in reuses)
            candidates.append(Candidate(reuses, seconds, float(best) ** (1 / power)))
    return [a for a, b in pairwise(candidates) if b.seconds > a.seconds] + candidates[-1:]


def _traced(came: NDArray[np.int32], steps: Sequence[int], end: int, time: int) -> Reuses:
    """Collect the runs, from the last to the first."""
    reuses: list[tuple[int, int] | None] = []
    while end:
        start, feature = map(int, came[end, time])
        reuses = [None, *[(start, feature)] * (end - start - 1), *reuses]
        time -= steps[0] + (end - start - 1) * steps[1 + feature]
        end = start
    return tuple(reuses)
