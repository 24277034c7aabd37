"""Ranges on distributions whose best range is known, and scales that are found by trying all."""

from __future__ import annotations

import math

import pytest
import torch

from diffc.compiler.quantization.formats import FORMATS, Spec, parse_spec, spread
from diffc.compiler.quantization.scales import round_nearest, weight_scales
from tests.tolerances import SEARCHED_RANGE

SPECS = (
    "int8:tensor",
    "int8:channel",
    "int4:channel",
    "uint4:channel",
    "int4:group=32",
    "uint4:group=32",
    "int4:group=32:scale=float16",
    "int4:group=32:scale=uint4",
    "e4m3:channel",
    "nvfp4",
    "mxfp4",
)


def spec_of(text: str) -> Spec:
    """Read a spec that is none for float."""
    spec = parse_spec(text)
    assert spec is not None
    return spec


def weight(rows: int = 24, columns: int = 96) -> torch.Tensor:
    """Sample a weight of rows of different sizes, with outliers, a zero row and a positive one."""
    random = torch.Generator().manual_seed(0)
    made = torch.randn(rows, columns, generator=random) * torch.logspace(-3, 1, rows)[:, None]
    made[::3, ::17] *= 6
    made[1], made[2] = 0.0, made[2].abs()
    return made


@pytest.mark.parametrize("shape", [(24, 96), (24, 10, 3, 3), (24, 90)], ids=str)
@pytest.mark.parametrize("text", SPECS)
def test_the_least_error_is_never_worse_than_the_largest_number(text: str, shape: tuple[int, ...]) -> None:
    spec, x = spec_of(text), weight(24, math.prod(shape[1:])).reshape(shape)
    errors = [((weight_scales(x, spec, by).value(spec) - x) ** 2).sum() for by in ("mse", "minmax")]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("shape", [(24, 96), (24, 10, 3, 3)], ids=str)
@pytest.mark.parametrize("text", SPECS)
def test_codes_and_scales_are_numbers_that_can_be_stored(text: str, shape: tuple[int, ...]) -> None:
    spec, x = spec_of(text), weight(24, math.prod(shape[1:])).reshape(shape)
    found = weight_scales(x, spec, "mse")
    for numbers, form in (
        (spec.format.decode(found.quantized), spec.format),
        (found.zero, spec.format),
        (found.scale, FORMATS.get(spec.scale)),
    ):
        if numbers is not None and form is not None:
            assert torch.equal(form.decode(form.encode(numbers)), numbers)
    if spec.scale == "float16":
        assert torch.equal(found.scale.half().float(), found.scale)
    assert (found.scale > 0).all() and (found.outer is None) == (spec.scale not in FORMATS)
    assert found.quantized.shape == x.shape and found.value(spec).isfinite().all()


@pytest.mark.parametrize("text", ["int8:channel", "int4:channel", "int4:group=32", "int8:tensor"])
def test_the_largest_number_is_the_end_of_a_symmetric_grid(text: str) -> None:
    spec, x = spec_of(text), weight()
    found = weight_scales(x, spec, "minmax")
    per = x if spec.per != "tensor" else x.reshape(1, -1)
    largest = per.reshape(len(per), -1, spec.group or per.shape[1]).abs().amax(-1)
    wanted = torch.where(largest > 0, largest / spec.format.highest, 1.0)
    assert torch.equal(found.scale.flatten(), wanted.flatten())
    assert (found.value(spec) - x).abs().max() <= wanted.max() / 2 * (1 + SEARCHED_RANGE)


def test_scales_of_groups_are_whole_multiples_of_the_rows() -> None:
    spec, x = spec_of("int4:group=32:scale=uint4"), weight()
    found = weight_scales(x, spec, "minmax")
    assert found.outer is not None and found.outer.shape == (24,)
    assert torch.equal(found.scale.amax(1), torch.full((24,), 15.0)) and found.scale.min() >= 1


def test_scales_that_are_powers_of_two_let_nothing_be_cut_off() -> None:
    spec, x = spec_of("mxfp4"), weight()
    found = weight_scales(x, spec, "minmax")
    largest = x.reshape(24, -1, 32).abs().amax(-1)
    assert (found.scale * 6 >= largest).all()
    alive = largest > 0
    assert (found.scale[alive] * 3 < largest[alive]).all(), "half of it would cut something off"


@pytest.mark.parametrize("text", SPECS)
def test_another_weight_is_rounded_with_the_same_scales(text: str) -> None:
    spec, x = spec_of(text), weight()
    like = weight_scales(x, spec, "mse")
    assert torch.equal(round_nearest(x, spec, like).quantized, like.quantized)
    other = round_nearest(x * 0.5 + 0.01, spec, like)
    assert torch.equal(other.scale, like.scale)
    quantized = spec.format.decode(other.quantized)
    scale = like.scale if like.outer is None else like.scale * like.outer.reshape(-1, 1)
    step = spread(scale, x.shape, spec.group) * spec.format.spacing(quantized).abs()
    inside = (quantized.abs() < spec.format.highest) & (quantized > spec.format.lowest)
    wrong = (other.value(spec) - (x * 0.5 + 0.01)).abs()
    assert (wrong <= step * (0.5 + SEARCHED_RANGE))[inside].all()
