"""The frontier of schedules is that of trying all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from diffc.passes.cache.auto.search import Candidate, frontier

WHOLE, REUSING = 1.0, (0.25, 0.5)


def drifting(seed: int, count: int) -> NDArray[np.float64]:
    """Sample errors that grow with the distance, of two features, and are not possible for one distance."""
    random = np.random.default_rng(seed)
    distance = np.maximum(np.arange(count)[:, None] - np.arange(count), 0)
    errors = random.uniform(0.5, 1.5, (2, count, count)) * distance * np.array([2.0, 1.0])[:, None, None]
    errors[:, distance > 4] = np.inf
    return errors


def every_way(errors: NDArray[np.float64], power: int) -> list[Candidate]:
    """Try each set of evaluations that compute all, and each feature for each run."""
    _, count, _ = errors.shape
    found = []
    for computes in itertools.product([True, False], repeat=count - 1):
        starts = [0, *(at + 1 for at, each in enumerate(computes) if each)]
        for chosen in itertools.product(range(2), repeat=len(starts)):
            reuses: list[tuple[int, int] | None] = []
            for start, end, feature in zip(starts, [*starts[1:], count], chosen, strict=True):
                reuses += [None, *[(start, feature)] * (end - start - 1)]
            seconds = sum(WHOLE if each is None else REUSING[each[1]] for each in reuses)
            runs = dict.fromkeys(starts, 0.0)
            for at, each in enumerate(reuses):
                if each is not None:
                    runs[each[0]] += errors[each[1], at, each[0]]
            error = sum(each**power for each in runs.values()) ** (1 / power)
            found.append(Candidate(tuple(reuses), seconds, float(error)))
    return [each for each in found if np.isfinite(each.error)]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_better_than_the_frontier(seed: int, power: int) -> None:
    errors = drifting(seed, 7)
    tried, found = every_way(errors, power), frontier(WHOLE, REUSING, errors, power=power)
    best = {
        seconds: min(each.error for each in tried if each.seconds <= seconds) for seconds in {t.seconds for t in tried}
    }
    assert [each.seconds for each in found] == sorted({each.seconds for each in found})
    assert {each.seconds: pytest.approx(each.error) for each in found} == {
        seconds: error
        for seconds, error in best.items()
        if all(other > error for earlier, other in best.items() if earlier < seconds)
    }


def test_a_way_says_what_it_costs() -> None:
    errors = drifting(7, 8)
    for each in frontier(WHOLE, REUSING, errors):
        assert each.seconds == sum(WHOLE if reuse is None else REUSING[reuse[1]] for reuse in each.reuses)
        used = [(at, *reuse) for at, reuse in enumerate(each.reuses) if reuse is not None]
        assert each.error == pytest.approx(sum(errors[feature, at, source] for at, source, feature in used))
        assert all(each.reuses[source] is None for _, source, _ in used)


def test_what_cannot_be_reused_is_computed() -> None:
    (only,) = frontier(WHOLE, REUSING, np.full((2, 6, 6), np.inf))
    assert only == Candidate((None,) * 6, 6 * WHOLE, 0.0)
