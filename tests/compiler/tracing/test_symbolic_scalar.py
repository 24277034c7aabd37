"""A number of the request is followed through a trace: comparisons become guards, constants polynomials."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from diffc.compiler.ir.program import Guard, Op, Polynomial, Program
from diffc.compiler.tracing.symbolic_scalar import Scalar
from diffc.compiler.tracing.trace import capture
from diffc.runtime.program.verify import verify
from tests.random_programs import difference, draws, numbers
from tests.tolerances import SCALARS


def scalar(value: float) -> Scalar:
    """Make a number of the request."""
    return Scalar(value, "g", [])


# Guards


@pytest.mark.parametrize(
    ("compare", "other", "guard"),
    [
        (operator.lt, 3.0, Guard("g", "<", 3.0)),
        (operator.lt, 1.0, Guard("g", ">=", 1.0)),
        (operator.le, 3.0, Guard("g", "<=", 3.0)),
        (operator.le, 1.0, Guard("g", ">", 1.0)),
        (operator.gt, 1.0, Guard("g", ">", 1.0)),
        (operator.gt, 3.0, Guard("g", "<=", 3.0)),
        (operator.ge, 2.0, Guard("g", ">=", 2.0)),
        (operator.ge, 3.0, Guard("g", "<", 3.0)),
        (operator.eq, 2.0, Guard("g", "==", 2.0)),
        (operator.eq, 1.0, Guard("g", "!=", 1.0)),
        (operator.ne, 1.0, Guard("g", "!=", 1.0)),
        (operator.ne, 2.0, Guard("g", "==", 2.0)),
    ],
)
def test_a_comparison_is_noted_as_it_came_out(compare: Callable[[Any, Any], bool], other: float, guard: Guard) -> None:
    g = scalar(2.0)
    assert compare(g, other) == compare(2.0, other)
    assert g.guards == [guard]


def test_a_comparison_from_the_other_side_is_noted_too() -> None:
    g = scalar(2.0)
    assert 1 < g  # noqa: SIM300
    assert not 2 < g  # noqa: SIM300
    assert g.guards == [Guard("g", ">", 1.0), Guard("g", "<=", 2.0)]


def test_truth_is_a_comparison_with_zero() -> None:
    g, zero = scalar(2.0), scalar(0.0)
    assert g and not zero
    assert (g.guards, zero.guards) == ([Guard("g", "!=", 0.0)], [Guard("g", "==", 0.0)])


def test_a_comparison_with_what_is_no_number_is_none() -> None:
    g = scalar(2.0)
    assert g != "auto" and "auto" != g and not operator.eq(g, None)  # noqa: SIM300
    assert g.guards == []


def test_the_same_question_is_noted_once() -> None:
    g = scalar(2.0)
    assert all(g > 1 for _ in range(3))
    assert g.guards == [Guard("g", ">", 1.0)]


def test_a_symbolic_scalar_is_a_number_otherwise() -> None:
    g = scalar(2.5)
    assert (float(g * 2), int(g), hash(g), f"{g:.1f}") == (5.0, 2, hash(2.5), "2.5")
    assert g.guards == []


@pytest.mark.parametrize(
    ("made", "holds", "guard"),
    [
        (lambda g: g - 1 > 0, True, Guard("g", ">", 1.0)),
        (lambda g: 3 - g > 0, False, Guard("g", ">=", 3.0)),
        (lambda g: 2 * g + 3 > 1, True, Guard("g", ">", -1.0)),
        (lambda g: -g / 2 <= -2, True, Guard("g", ">=", 4.0)),
        (lambda g: (g - 4) == 0, True, Guard("g", "==", 4.0)),
        (lambda g: bool(g - 1), True, Guard("g", "!=", 1.0)),
        (lambda g: g * g > 9, True, Guard("g", "==", 4.0)),
        (lambda g: g**2 != 16, False, Guard("g", "==", 4.0)),
        (lambda g: 1 / g > 0, True, Guard("g", "==", 4.0)),
        (lambda g: abs(g) < 0, False, Guard("g", "==", 4.0)),
        (lambda g: g < g + 1, True, Guard("g", "==", 4.0)),
        (lambda g: 0 * g < 1, True, Guard("g", "==", 4.0)),
        (lambda g: copy.deepcopy(g) > 1, True, Guard("g", ">", 1.0)),
    ],
)
def test_a_comparison_of_what_is_made_of_it_is_noted(made: Callable[[Any], bool], holds: bool, guard: Guard) -> None:
    g = scalar(4.0)
    assert made(g) == made(4.0) == holds
    assert g.guards == [guard]


def test_arithmetic_with_tensors_is_theirs() -> None:
    tensor = torch.ones(2)
    for made in (scalar(2.0) * tensor, tensor * scalar(2.0), scalar(2.0) + tensor, tensor / scalar(2.0)):
        assert type(made) is torch.Tensor
    for made in (1 - scalar(2.0) * tensor, scalar(2.0) - tensor, scalar(2.0) / tensor, scalar(2.0) ** tensor):
        assert type(made) is torch.Tensor


# Polynomials


def linears(function: Callable[..., torch.Tensor]) -> tuple[Program, list[Op]]:
    """Capture a function of a number, check it at numbers that the trace never saw, and list its linears."""
    program = verify(capture(function, {}))
    assert program.guards == ()
    noises = draws(program)
    for g in (-3.0, 0.0, 11.0):
        torch.manual_seed(0)
        shapes = [noise.shape for noise in noises]
        again = [torch.randn(shape) for shape in shapes]
        torch.manual_seed(0)
        assert difference(numbers(program, again, g=g), [function(g)]) <= SCALARS
    return program, [op for op in program.ops if op.operator == "linear"]


POLYNOMIALS: dict[str, tuple[Callable[[float], float], dict[tuple[str, ...], float]]] = {
    "the number": (lambda g: g, {("g",): 1.0}),
    "one less": (lambda g: g - 1, {("g",): 1.0, (): -1.0}),
    "a share": (lambda g: 0.3 * g, {("g",): 0.3}),
    "a square": (lambda g: 2 * g * g - 3, {("g", "g"): 2.0, (): -3.0}),
    "a tiny share": (lambda g: 1e-9 * g, {("g",): 1e-9}),
    "a huge one": (lambda g: 1e9 * g + 5e8, {("g",): 1e9, (): 5e8}),
}


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomials_are_found(name: str) -> None:
    polynomial, terms = POLYNOMIALS[name]

    def sample(g: float = 2.0) -> torch.Tensor:
        return torch.randn(3) * polynomial(g)

    _, (found,) = linears(sample)
    (coefficient,) = found.coefficients
    assert {names for names, _ in coefficient.terms} == set(terms)
    assert dict(coefficient.terms) == pytest.approx(terms, rel=1e-5)


def test_no_table_for_a_number() -> None:
    program, (found,) = linears(lambda g=2.0: torch.randn(3) * g)
    assert program.tables == () and found.args == ()
    assert found.coefficients == (Polynomial.of({("g",): 1.0}),)


def test_a_tensor_of_constants_is_a_sum_of_tables() -> None:
    weights = torch.tensor([1.0, -2.0, 0.5])

    def sample(g: float = 2.0) -> torch.Tensor:
        return torch.randn(3) * (weights * g + 1.0)

    program, (found,) = linears(sample)
    assert found.coefficients[1] == Polynomial.of({("g",): 1.0})
    table = next(t for t in program.tables if t.name == next(iter(list(found.reads())[1:])))
    assert table.data is not None and np.allclose(table.data, weights)


def test_a_tensor_of_equal_constants_needs_no_table() -> None:
    program, (found,) = linears(lambda g=2.0: torch.randn(2, 3) * torch.full((2, 1), 1.0).mul(g))
    assert program.tables == ()
    assert found.results[0].type.shape == (2, 1)


def test_subtracting_from_a_number() -> None:
    assert len(linears(lambda g=2.0: g - torch.randn(3))[1]) == 1


def test_two_numbers_are_fitted_one_after_the_other() -> None:
    def sample(g: float = 2.0, h: float = 3.0) -> torch.Tensor:
        return torch.randn(3) * g + torch.randn(3) * (h - 1)

    program = verify(capture(sample, {}))
    noises = draws(program)
    wanted = noises[0] * 5 + noises[1] * 6
    assert program.guards == ()
    assert difference(numbers(program, noises, g=5.0, h=7.0), [wanted]) <= SCALARS


def test_a_product_of_two_numbers_fixes_one_of_them() -> None:
    program = capture(lambda g=2.0, h=3.0: torch.randn(3) * (g * h), {})
    assert program.guards == (Guard("h", "==", 3.0),)
    noises = draws(program)
    assert difference(numbers(program, noises, g=5.0), [noises[0] * 15]) <= SCALARS


@pytest.mark.parametrize(
    "curve",
    [
        lambda g: torch.tensor(float(g)).sin(),
        lambda g: torch.tensor(float(g)) ** 3,
        lambda g: 1 / g,
        lambda g: torch.tensor([g, g]).exp().sum(),
    ],
    ids=["sine", "cube", "inverse", "exponential"],
)
def test_what_is_no_polynomial_fixes_the_number(curve: Callable[[float], Any]) -> None:
    program = capture(lambda g=2.0: torch.randn(3) * curve(g), {})
    assert program.guards == (Guard("g", "==", 2.0),)
    assert [op.operator for op in program.ops] == ["noise", "aten.mul.Tensor"]


def test_too_few_points_to_fit_fix_the_number() -> None:
    def sample(g: float = 2.0) -> torch.Tensor:
        return torch.randn(3) * g if 1.9 < g < 2.1 else torch.randn(3)

    assert Guard("g", "==", 2.0) in capture(sample, {}).guards


def test_a_number_that_nothing_depends_on_is_no_input() -> None:
    assert capture(lambda g=2.0: torch.randn(3) * 2, {}).inputs == ()
