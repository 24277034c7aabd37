"""Guard a program by the range of a scalar over which further traces agree with its polynomials."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffc.compiler import capture
from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Guard, Program
from diffc.compiler.tracing.scalar_range import LARGEST, Traced, fit_over_range
from tests.random_programs import draws, numbers
from tests.tolerances import SCALARS

EVERYWHERE = (-1000.0, -37.0, -7.5, -1.0, -1e-3, 0.0, 1e-3, 0.5, 2.0, 3.0, 9.0, 19.0, 21.0, 55.0, 120.0, 1000.0)
"""Values of a request: of both signs, zero, tiny and large."""


def holds(program: Program, g: float) -> bool:
    """Return whether the guards admit a value."""
    return all(guard.holds({"g": g}) for guard in program.guards)


def served(function: Callable[[float], Any]) -> list[float]:
    """Compile noise times a function of a scalar; list the values that are served, after comparing each result."""

    def sample(g: float = 7.5) -> torch.Tensor:
        return torch.randn(3) * function(g)

    program = capture(sample, {})
    noise = draws(program)[0]
    largest = float((noise * function(7.5)).abs().max())
    values = [g for g in (7.5, *EVERYWHERE) if holds(program, g)]
    for g in values:
        expected = noise * function(g)
        size = max(largest, float(expected.abs().max()))
        [result] = numbers(program, [noise], g=g) if program.inputs else numbers(program, [noise])
        assert (result - expected).abs().max() <= 2 * SCALARS * size, f"g = {g}"
    return values


EXACT: dict[str, Callable[[float], Any]] = {
    "itself": lambda g: g,
    "a square": lambda g: 0.1 * g * g - g / 3 + 0.1,
    "a tensor of float32": lambda g: torch.full((3,), g * 0.1),
    "no dependence": lambda g: 2.0,
}


@pytest.mark.parametrize("name", EXACT)
def test_a_polynomial_serves_every_value(name: str) -> None:
    assert served(EXACT[name]) == [7.5, *EVERYWHERE]


BENT: dict[str, tuple[Callable[[float], Any], float, float]] = {
    "clamp": (lambda g: torch.tensor(g).clamp(-1, 20), -1, 20),
    "clamp of a number": (lambda g: torch.tensor(float(g)).clamp(max=10).item(), -LARGEST, 10),
    "relu": (lambda g: torch.tensor(g).relu(), 0, LARGEST),
    "absolute value": (lambda g: abs(g - 2), 2, LARGEST),
    "absolute value of a tensor": (lambda g: torch.tensor(g - 2).abs(), 2, LARGEST),
    "a whole number": (lambda g: 1 + int(g / 100), -100, 100),
    "a rounded number": (lambda g: round(g / 50), -25, 25),
    "a branch on a number": (lambda g: 2 * g if float(g) < 20 else 3.0, -LARGEST, 20),
    "a selection": (lambda g: torch.where(torch.tensor(g) > 3, g * 1.0, 5.0), 3, LARGEST),
    "the truth of a number": (lambda g: 2.0 if float(g) else 1.0, 0, LARGEST),
    "the smaller of two": (lambda g: min(g, 10.0), -LARGEST, 10),
}


@pytest.mark.parametrize("name", BENT)
def test_what_bends_is_served_up_to_the_bend(name: str) -> None:
    function, low, high = BENT[name]
    values = served(function)
    assert 7.5 in values and all(low <= value <= high for value in values)
    assert len(values) > 1, "the range is more than the default"


FIXED: dict[str, Callable[[float], Any]] = {
    "square root": math.sqrt,
    "rounded down": math.floor,
    "quarters": lambda g: math.floor(4 * g),
    "tenths": lambda g: round(g, 1),
    "a table": lambda g: [1.0, 2.0, 4.0, 8.0][min(3, int(float(g) / 4))],
}


@pytest.mark.parametrize("name", FIXED)
def test_what_is_no_polynomial_near_the_default_fixes_it(name: str) -> None:
    assert served(FIXED[name]) == [7.5]


def test_what_is_nearly_a_polynomial_is_served_where_it_is() -> None:
    values = served(lambda g: 1000 + math.sqrt(abs(g)))
    assert 7.5 in values and 9.0 in values and max(values) < 20 and min(values) > 2


def test_the_guard_of_a_comparison_stays_beside_that_of_a_clamp() -> None:
    def sample(g: float = 7.5) -> torch.Tensor:
        return torch.randn(3) * torch.tensor(g).clamp(max=12) if g > 1 else torch.randn(3)

    first, second = capture(sample, {}).guards
    assert first == Guard("g", ">", 1.0)
    assert (second.scalar, second.comparison) == ("g", "<=") and 11 < second.bound <= 12


def test_a_guided_program_is_traced_four_times_more() -> None:
    values = list[float]()

    def sample(g: float = 7.5) -> torch.Tensor:
        values.append(float(g))
        return torch.randn(3) * g if g > 1 else torch.randn(3)

    assert capture(sample, {}).guards == (Guard("g", ">", 1.0),)
    assert len(values) == 5 and min(values) == pytest.approx(1.001) and max(values) == LARGEST


def test_values_that_the_function_refuses_are_not_served() -> None:
    def trace(value: float) -> Any:
        if value != 2.0 and not 1.0 < value < 40.0:
            raise CaptureError("too large")
        return Traced(capture(lambda g=value: torch.randn(3) * 2.0, {}).ops, {})

    fit = fit_over_range("g", 2.0, trace(2.0), [], trace)
    assert fit is not None
    low, high = fit.guards
    assert 1.0 < low.bound < 1.1 and 39.0 < high.bound < 40.0


WINDOWS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[str]]] = {
    "a narrow window": (lambda t: 1 + ((t > 20) & (t < 21)), ["g <= 20.0"]),
    "a window of a multiple": (lambda t: torch.where((t * 2 > 7) & (t * 2 < 7.2), t, -t), ["g >= 3.6"]),
    "one value": (lambda t: 1 + (t == 7.5), ["g <= 7"]),
    "a window of a square": (lambda t: 1 + ((t * t > 400) & (t * t < 441)), ["g == 4.0"]),
    "no window": (lambda t: torch.where(t > -1e9, t, -t), []),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_what_a_tensor_of_a_scalar_is_compared_with_bounds_its_range(name: str) -> None:
    factor, guards = WINDOWS[name]

    def sample(g: float = 4.0) -> torch.Tensor:
        return torch.randn(3) * factor(torch.tensor([g]))

    recorded = [str(guard) for guard in capture(sample, {}).guards]
    assert len(recorded) == len(guards) and all(map(str.startswith, recorded, guards)), recorded
