"""A range decides a comparison only where every value in it has the same outcome."""

from __future__ import annotations

import operator

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.value_ranges import Ranged, decided, range_of_results

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
