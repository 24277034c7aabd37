"""Features are equal by what they name, so that calls which reuse the same ones have one reuse pattern."""

from __future__ import annotations

from diffc.compiler.analysis.features import Feature


def test_a_reuse_pattern_has_no_order() -> None:
    patterns = {frozenset({Feature("down"), Feature("up", "x")}), frozenset({Feature("up", "x"), Feature("down", "")})}
    assert len(patterns) == 1


def test_the_base_is_a_part_of_a_feature() -> None:
    assert len({Feature("up"), Feature("up", "x"), Feature("up", "y")}) == 3
