"""Ranges of activations, against distributions whose best range is known."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch

from diffc.compiler.quantization.formats import Spec, parse_spec
from diffc.compiler.quantization.observers import Histogram
from diffc.compiler.quantization.ops import scale_and_zero
from diffc.compiler.quantization.ranges import METHODS, PERCENTILE, activation_range
from diffc.compiler.quantization.scales import RATIOS
from tests.tolerances import SEARCHED_RANGE


def spec_of(text: str) -> Spec:
    """Read a spec that is none for float."""
    spec = parse_spec(text)
    assert spec is not None
    return spec


def histogram(x: torch.Tensor) -> Histogram:
    """Count numbers."""
    made = Histogram()
    made.add(x)
    return made


def normal(count: int = 200_000) -> torch.Tensor:
    """Give numbers that are distributed normally, without chance."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count).float()


def error(x: torch.Tensor, spec: Spec, low: float, high: float) -> float:
    """Give the squared error of rounding with a range."""
    scale, zero = scale_and_zero(spec, torch.tensor(low), torch.tensor(high))
    offset = torch.zeros(()) if zero is None else zero
    return float((((spec.format.round(x / scale + offset) - offset) * scale - x).double() ** 2).mean())


def test_the_percentile_of_a_normal_distribution() -> None:
    low, high = activation_range(histogram(normal()), spec_of("uint8:tensor"), "percentile")
    wanted = NormalDist().inv_cdf(PERCENTILE)
    assert abs(high - wanted) < SEARCHED_RANGE and abs(low + wanted) < SEARCHED_RANGE


# Max, "Quantizing for Minimum Distortion", 1960, table II: the step of the best uniform quantizer of so many levels.
@pytest.mark.parametrize(("bits", "even", "odd"), [(3, 0.5860, 0.6508), (4, 0.3352, 0.3534)])
def test_the_least_error_of_a_normal_distribution_is_where_max_has_it(bits: int, even: float, odd: float) -> None:
    low, high = activation_range(histogram(normal()), spec_of(f"int{bits}:tensor"), "mse")
    step = high / (2 ** (bits - 1) - 1)
    assert low == -high and even * (1 - SEARCHED_RANGE) <= step <= odd * (1 + SEARCHED_RANGE)


def test_divergence_cuts_off_a_long_tail_and_keeps_a_uniform_distribution() -> None:
    tail = torch.cat([normal(), torch.tensor([50.0, -50.0])])
    assert activation_range(histogram(tail), spec_of("int8:tensor"), "kl")[1] < 10
    low, high = activation_range(histogram(torch.linspace(-1, 1, 100_000)), spec_of("int8:tensor"), "kl")
    assert (low, high) == pytest.approx((-1, 1), abs=SEARCHED_RANGE)


@pytest.mark.parametrize("by", METHODS)
def test_a_range_is_within_what_was_seen(by: str) -> None:
    x = torch.cat([normal() * 0.3 + 1.0, torch.tensor([9.0])])
    low, high = activation_range(histogram(x), spec_of("uint8:tensor"), by)
    assert min(0.0, float(x.min())) <= low <= high <= float(x.max())
    constant = histogram(torch.full((5,), 3.0))
    assert activation_range(constant, spec_of("uint8:tensor"), by) == (3.0, 3.0)


@pytest.mark.parametrize("text", ["int8:tensor", "int4:tensor", "uint8:tensor", "uint4:tensor", "e4m3:tensor"])
@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_no_way_to_choose_has_a_smaller_error_than_mse(text: str, shift: float) -> None:
    spec, x = spec_of(text), torch.nn.functional.silu(normal(10_000) * 2 + shift)
    errors = {by: error(x, spec, *activation_range(histogram(x), spec, by)) for by in ("minmax", "mse")}
    assert errors["mse"] <= errors["minmax"] * (1 + SEARCHED_RANGE)
    if not spec.is_affine:
        largest = float(x.abs().max())
        tried = min(error(x, spec, -largest * float(ratio), largest * float(ratio)) for ratio in RATIOS)
        assert errors["mse"] <= tried * (1 + SEARCHED_RANGE)
