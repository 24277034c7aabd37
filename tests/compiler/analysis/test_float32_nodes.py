"""Operators that need float32, by hand for small modules; and values at the limits of 16 bits, as in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

from diffc.compiler.analysis.float32_nodes import arguments, representable, sensitive
from diffc.compiler.graph.export import export


class Timed(nn.Module):
    """Add a sine of the timestep to a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        """Compute the sum."""
        return (self.linear(x) + torch.sin(timestep * 0.5),)


class RootMeanSquare(nn.Module):
    """Divide a linear layer by its root mean square, or only by its mean magnitude."""

    def __init__(self, *, squares: bool) -> None:
        super().__init__()
        self.linear, self.squares = nn.Linear(4, 4), squares

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Normalize."""
        y = self.linear(x)
        return (y * torch.rsqrt((y.pow(2) if self.squares else y.abs()).mean(-1, keepdim=True)),)


class Masked(nn.Module):
    """Fill with a value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Fill what is negative."""
        return (torch.masked_fill(x, x < 0, self.value),)


def body_of(module: nn.Module, *feeds: torch.Tensor) -> fx.GraphModule:
    """Capture a module."""
    body: fx.GraphModule = export("net", module.requires_grad_(False), feeds).module(check_guards=False)
    return body


def test_a_sine_is_computed_in_float32_from_the_port_on() -> None:
    body = body_of(Timed(), torch.zeros(1, 4), torch.zeros(1, 1))
    assert sensitive(body, torch.float16) == {"mul", "sin"}


def test_a_root_mean_square_is_computed_in_float32_from_the_square_to_the_quotient() -> None:
    body = body_of(RootMeanSquare(squares=True), torch.zeros(1, 4))
    assert sensitive(body, torch.float16) == {"pow_1", "mean", "rsqrt", "mul"}


def test_another_root_is_not() -> None:
    assert sensitive(body_of(RootMeanSquare(squares=False), torch.zeros(1, 4)), torch.float16) == frozenset()


@pytest.mark.parametrize(("value", "needs_float32"), [(-1e5, True), (-6e4, False), (-1e9, False)])
def test_a_literal_outside_of_float16_that_is_no_infinity_needs_float32(value: float, needs_float32: bool) -> None:
    body = body_of(Masked(value), torch.zeros(3))
    assert ("masked_fill" in sensitive(body, torch.float16)) == needs_float32
    assert sensitive(body, torch.bfloat16) == frozenset()


def test_an_infinity_becomes_the_largest_value_that_is_finite() -> None:
    (node,) = (n for n in body_of(Masked(-1e9), torch.zeros(3)).graph.nodes if n.name == "masked_fill")
    assert arguments(node, torch.float16)[2] == -float(np.finfo(np.float16).max)


def test_finite_values_stay_finite_and_nonzero_ones_nonzero() -> None:
    values = np.array([0.0, 1e-30, -1e-30, 1e-6, 0.1, 1e6, -1e6, np.inf, -np.inf], np.float32)
    with np.errstate(over="ignore"):
        cast, limits = values.astype(np.float16), np.finfo(np.float16)
    expected = np.where(np.isinf(cast) & np.isfinite(values), np.sign(values) * limits.max, cast)
    expected = np.where((cast == 0) & (values != 0), np.sign(values) * limits.smallest_normal, expected)
    assert np.array_equal(representable(torch.tensor(values), torch.float16).numpy().astype(np.float16), expected)
