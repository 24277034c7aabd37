"""Sizes add, bind and print as affine expressions do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffc.runtime.program.parse import Reader
from diffc.runtime.program.size import AnySize, Size, bind, bounds

L, M = Size.of("L0"), Size.of("L1")

SIZES = st.tuples(*[st.integers(-4, 4)] * 3).map(lambda t: t[0] + t[1] * L + t[2] * M)
AT = {"L0": 5, "L1": 11}


def value(size: AnySize) -> int:
    return size.at(AT) if isinstance(size, Size) else size


@given(SIZES, SIZES, st.integers(-3, 3))
def test_arithmetic_is_that_of_the_values(one: AnySize, two: AnySize, factor: int) -> None:
    assert value(one + two) == value(one) + value(two)
    assert value(one - two) == value(one) - value(two)
    assert value(one * factor) == value(factor * one) == value(one) * factor
    assert one - one == 0 and one + two == two + one


@given(SIZES)
def test_the_reader_undoes_the_printer(size: AnySize) -> None:
    assert Reader(str(size)).size() == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(L, "L0"), (64 + L, "L0 + 64"), (2 * L + 1, "2*L0 + 1"), (M + L - 1, "L0 + L1 - 1"), (9 - L, "-1*L0 + 9")],
)
def test_sizes_print_their_lengths_by_name_and_then_the_constant(size: AnySize, text: str) -> None:
    assert str(size) == text and str([size]) == f"[{text}]"


def test_bounds_follow_the_sign_of_factors() -> None:
    assert bounds(2 * L - M + 1, {"L0": (1, 4), "L1": (0, 3)}) == (0, 9) and bounds(7, {}) == (7, 7)


def test_replacing_a_length_keeps_the_others() -> None:
    size = 2 * L + M
    assert isinstance(size, Size)
    assert size.replaced({"L0": M + 1}) == 3 * M + 2 and size.replaced({"L0": 1, "L1": 2}) == 4


def test_the_first_size_with_one_length_binds_it() -> None:
    assert bind([(L + M, 9), (L, M), (L, 5), (2 * M + 1, 2 * L + 7)]) == {"L0": M, "L1": L + 3}
    assert bind([(2 * L, 7), (4, 4)]) == {} and bind([(2 * L + 1, 9)]) == {"L0": 4}
