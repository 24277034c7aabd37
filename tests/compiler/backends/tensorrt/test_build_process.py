"""Calls of several sizes are shared out among ranges whose ends are calls themselves."""

from __future__ import annotations

from diffc.compiler.backends.tensorrt.build_process import ranges


def test_a_batch_of_one_and_of_two_share_a_range() -> None:
    assert ranges({"x": [(2, 8), (1, 8)], "t": [(2,), (1,)]}) == [({"x": (1, 8), "t": (1,)}, {"x": (2, 8), "t": (2,)})]


def test_portrait_and_landscape_do_not_share_one() -> None:
    tall, wide = {"x": (12, 8)}, {"x": (8, 12)}
    assert ranges({"x": [(12, 8), (8, 12)]}) == [(tall, tall), (wide, wide)]


def test_a_call_between_the_ends_widens_no_range() -> None:
    assert ranges({"x": [(4,), (8,), (6,)]}) == [({"x": (4,)}, {"x": (8,)})]
