"""Compare numbers of tokens, and find others with other outcomes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from diffc.compiler.tracing.token_counts import Count, Outcome, Sized, exact, sized_results, untried

RANGES = {"L0": range(2, 40)}


def count(value: int, outcomes: list[Outcome]) -> Count:
    """Return a number of tokens."""
    return Count(value, lambda counts: counts["L0"], outcomes)


def tried(function: Callable[[Count], object]) -> list[int]:
    """Call a function with numbers of tokens until all outcomes were seen."""
    counts, outcomes = [7], list[Outcome]()
    function(count(7, outcomes))
    while further := untried(outcomes, [{"L0": n} for n in counts], RANGES):
        counts.append(further["L0"])
        function(count(counts[-1], outcomes))
    return sorted(counts)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda n: n + 1, [7]),
        (lambda n: n > 20, [7, 21]),
        (lambda n: 10 < n < 14, [7, 11, 14]),
        (lambda n: 3 * (n - 1) // 2 == 30, [7, 21]),
        (lambda n: (100 - n) % 8 == 0, [4, 7]),
        (lambda n: bool(n - 9), [7, 9]),
        (lambda n: -n < -30, [7, 31]),
        (lambda n: 2**n > 2**12, [7, 13]),
        (lambda n: n == n + 0, [7]),
    ],
)
def test_a_comparison_has_a_number_of_each_outcome(function: Callable[[Count], object], expected: list[int]) -> None:
    assert tried(function) == expected


@pytest.mark.parametrize(
    "function",
    [
        int,
        hash,
        float,
        lambda n: n / 2,
        lambda n: n & 16,
        lambda n: divmod(n, 5),
        lambda n: 1 << n,
        repr,
        "{:d}".format,
    ],
)
def test_a_use_that_cannot_be_followed_has_as_many_as_it_has_values(function: Callable[[Count], object]) -> None:
    outcomes = list[Outcome]()
    function(count(7, outcomes))
    assert [outcome({"L0": n}) for outcome in outcomes for n in (8, 30)] == [8, 30]


def test_an_exact_integer_notes_nothing() -> None:
    outcomes = list[Outcome]()
    number = exact(count(7, outcomes))
    assert (type(number), number, exact("a")) == (int, 7, "a") and not outcomes


def test_sizes_of_results_are_functions_of_the_numbers_too() -> None:
    outcomes = list[Outcome]()
    tokens = torch.zeros(1, 7)
    tokens.sized = Sized(lambda counts: torch.empty((1, counts["L0"]), device="meta"), outcomes)  # type: ignore[attr-defined]
    [rows] = sized_results(torch.ops.aten.slice.Tensor, (tokens, 1, 1, -1), {}, 1)
    assert rows is not None and rows.shape((1, 5))[1] == 5
    assert [outcomes[0]({"L0": n}) for n in (7, 9)] == [True, False]
    assert sized_results(torch.ops.aten.add.Tensor, (torch.zeros(1), 1), {}, 1) == [None]


def test_texts_change_at_once() -> None:
    outcomes: list[Outcome] = [lambda counts: counts["L0"] > 9, lambda counts: counts["L1"] > 9]
    ranges = {"L0": range(2, 20), "L1": range(2, 20)}
    assert untried(outcomes, [{"L0": 5, "L1": 7}], ranges) == {"L0": 10, "L1": 10}
    assert untried(outcomes, [{"L0": 5, "L1": 7}, {"L0": 10, "L1": 10}], ranges) is None
