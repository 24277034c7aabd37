"""A range decides a comparison only where every value in it has the same outcome."""

from __future__ import annotations

import operator

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.value_ranges import Ranged, decided, range_of_monotone, range_of_results

aten = torch.ops.aten
COMPARISONS = {
    aten.lt.Scalar: operator.lt,
    aten.le.Scalar: operator.le,
    aten.gt.Scalar: operator.gt,
    aten.ge.Scalar: operator.ge,
}


@pytest.mark.parametrize("than", [-0.5, 0.0, 0.25, 1.0, 1.5])
@pytest.mark.parametrize("compare", COMPARISONS)
def test_a_comparison_is_decided_where_all_values_agree(compare: object, than: float) -> None:
    outcomes = {COMPARISONS[compare](value, than) for value in (0.0, 0.1, 0.25, 0.9, 1.0)}
    outcome = decided(compare, (0.0, 1.0), (None, than), (2, 3))
    if len(outcomes) > 1:
        assert outcome is None
        with pytest.raises(CaptureError, match="between 0.0 and 1.0"):
            COMPARISONS[compare](Ranged((0.0, 1.0)), than)
    else:
        assert outcome is not None and outcome.shape == (2, 3) and set(outcome.flatten().tolist()) == outcomes
        assert {COMPARISONS[compare](Ranged((0.0, 1.0)), than)} == outcomes


def test_a_sum_has_the_range_of_all_its_terms() -> None:
    x = torch.cat([torch.full((4,), -1.0), torch.full((4,), 2.0)]).reshape(2, 4)
    assert range_of_results(aten.sum.dim_IntList, [(-1.0, 2.0)], torch.float32, 4) == (
        x.sum(1).min().item(),
        x.sum(1).max().item(),
    )


def test_an_unknown_operand_leaves_the_range_open() -> None:
    assert range_of_results(aten.cat.default, [(0.0, 1.0), (-3.0, 0.5)], torch.float32, 1) == (-3.0, 1.0)
    assert range_of_results(aten.cat.default, [(0.0, 1.0), None], torch.float32, 1) is None
    assert range_of_results(aten.exp.default, [(0.0, 1.0)], torch.float32, 1) is None


def test_arithmetic_with_constants_moves_both_ends_of_a_range() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0])
    cases = [(aten.mul.Tensor, (x, -3)), (aten.div.Tensor, (x, 255)), (aten.clamp.default, (x, 0, 1))]
    for func, args in [*cases, (aten.sub.Tensor, (x, torch.tensor(1.0))), (aten.add.Tensor, (2, x))]:
        results = func(*args)
        bounds = range_of_monotone(func, args, {}, (-1.0, 2.0))
        assert bounds == (results.min().item(), results.max().item())


def test_the_range_of_a_quotient_or_of_two_operands_is_open() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0])
    assert range_of_monotone(aten.div.Tensor, (torch.tensor(1.0), x), {}, (-1.0, 2.0)) is None
    assert range_of_monotone(aten.mul.Tensor, (x, x), {}, (-1.0, 2.0)) is None
    assert range_of_monotone(aten.sqrt.default, (x,), {}, (-1.0, 2.0)) is None
    assert range_of_monotone(aten.sin.default, (x,), {}, (-1.0, 2.0)) is None
