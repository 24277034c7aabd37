"""Grids against tables that are written out and torch's own types; specs against their text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffc.compiler.errors import RecipeError
from diffc.compiler.quantization.formats import FORMATS, SCALES, TIMES, Spec, parse_spec, spread

E2M1_VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # OCP MX 1.0, table 5
FLOATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
INTEGERS = [name for name, form in FORMATS.items() if form.is_integer]


def values(name: str) -> torch.Tensor:
    """List all finite numbers of a grid, in order."""
    if name == "e2m1":
        found = torch.tensor(E2M1_VALUES + [-v for v in E2M1_VALUES])
    elif name == "e8m0":
        found = torch.tensor([2.0**e for e in range(-127, 128)], dtype=torch.float64).float()
    elif name in FLOATS:
        found = torch.arange(256, dtype=torch.uint8).view(FLOATS[name]).float()
    else:
        bits, signed = int(name.lstrip("uint")), not name.startswith("u")
        found = torch.arange(2**bits).float() - (2 ** (bits - 1) if signed else 0)
    return found[found.isfinite()].unique()


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "e8m0"])
def test_numbers_of_the_grid_stay_and_others_become_the_nearest(name: str) -> None:
    grid, form = values(name), FORMATS[name]
    assert torch.equal(form.round(grid), grid)
    assert (form.lowest, form.highest) == (float(grid[0]), float(grid[-1]))
    x = torch.cat([torch.randn(4000, generator=torch.Generator().manual_seed(0)) * s for s in (1e-3, 1, 100, 1e5)])
    distance = (form.round(x)[:, None] - grid).abs().amin(1)
    assert not distance.any(), "what is rounded is of the grid"
    nearest = (x[:, None].double() - grid).abs().amin(1)
    assert torch.equal((form.round(x).double() - x).abs(), nearest)


@pytest.mark.parametrize("name", [*INTEGERS, *FLOATS, "e2m1"])
def test_a_tie_goes_to_the_even_code(name: str) -> None:
    grid = values(name)
    middles = (grid[:-1].double() + grid[1:]) / 2
    assert torch.equal(middles.float().double(), middles)
    rounded = FORMATS[name].round(middles.float())
    below = torch.searchsorted(grid, rounded)
    zero = int(torch.searchsorted(grid, torch.zeros(())))
    assert not ((below - zero) % 2).any(), "counted from zero, every second number has an even mantissa"


@pytest.mark.parametrize("name", FLOATS)
def test_floats_of_eight_bits_are_torchs(name: str) -> None:
    form = FORMATS[name]
    x = torch.randn(20000, generator=torch.Generator().manual_seed(1)) * torch.logspace(-9, 4, 20000)
    x = x.clamp(form.lowest, form.highest)
    assert torch.equal(form.round(x), x.to(FLOATS[name]).float())


@pytest.mark.parametrize("name", FORMATS)
def test_what_lies_outside_becomes_the_end(name: str) -> None:
    form = FORMATS[name]
    ends = form.round(torch.tensor([-1e38, -float("inf"), float("inf")]))
    assert ends.tolist() == [form.lowest, form.lowest, form.highest]


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_stored_is_read_again(name: str) -> None:
    form = FORMATS[name]
    stored = form.encode(values(name))
    assert stored.dtype == form.storage and torch.equal(form.decode(stored), values(name))


def test_codes_of_small_floats_are_those_of_the_specification() -> None:
    e2m1, e8m0 = FORMATS["e2m1"], FORMATS["e8m0"]
    assert e2m1.encode(torch.tensor(E2M1_VALUES)).tolist() == list(range(8))
    assert e2m1.encode(torch.tensor([-v for v in E2M1_VALUES])).tolist() == list(range(8, 16))
    assert e8m0.encode(torch.tensor([2.0**-127, 0.5, 1.0, 2.0**127])).tolist() == [0, 126, 127, 254]


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Sample a spec that can be written."""
    form = FORMATS[draw(st.sampled_from([name for name in FORMATS if name != "e8m0"]))]
    signed = not form.name.startswith("u")
    per = draw(st.sampled_from(["tensor", "channel", "group", *(["token"] if signed else [])]))
    when = draw(st.sampled_from(TIMES if signed else TIMES[:1]))
    if per != "group":
        return Spec(form, per, when=when)
    return Spec(form, per, draw(st.integers(1, 4096)), when, draw(st.sampled_from(SCALES)))


@given(specs())
def test_a_spec_is_read_as_it_was_written(spec: Spec) -> None:
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "form", "per", "group", "when", "scale"),
    [
        ("int8:channel", "int8", "channel", 0, "static", "float32"),
        ("int4:group=64", "int4", "group", 64, "static", "float32"),
        ("uint8:tensor", "uint8", "tensor", 0, "static", "float32"),
        ("int8:tensor:step", "int8", "tensor", 0, "step", "float32"),
        ("int8:token", "int8", "token", 0, "dynamic", "float32"),
        ("int8:group=32:dynamic", "int8", "group", 32, "dynamic", "float32"),
        ("nvfp4", "e2m1", "group", 16, "static", "e4m3"),
        ("nvfp4:dynamic", "e2m1", "group", 16, "dynamic", "e4m3"),
        ("mxfp4", "e2m1", "group", 32, "static", "e8m0"),
        ("int4", "int4", "tensor", 0, "static", "float32"),
    ],
)
def test_a_spec_means_what_the_documentation_says(
    text: str, form: str, per: str, group: int, when: str, scale: str
) -> None:
    assert parse_spec(text) == Spec(FORMATS[form], per, group, when, scale)


def test_float_is_no_spec() -> None:
    assert parse_spec("float") is None


@pytest.mark.parametrize(
    ("text", "word", "guess"),
    [
        ("int44:channel", "int44", "int4"),
        ("nvpf4", "nvpf4", "nvfp4"),
        ("e8m0", "e8m0", None),
        ("int8:chanel", "chanel", "channel"),
        ("int4:group=x", "group=x", "group=64"),
        ("int4:group=0", "group=0", "group=64"),
        ("int4:group", "group", "group=64"),
        ("int8:token=4", "token=4", "token"),
        ("int4:group=64:scale=uint8", "scale=uint8", "scale=uint4"),
        ("", "", None),
    ],
)
def test_an_unknown_word_is_named_with_one_that_is_near(text: str, word: str, guess: str | None) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_spec(text)
    assert refused.value.what == f"{word!r} is no word of a spec" and refused.value.where == text
    if guess is not None:
        assert f"did you mean {guess}? " in str(refused.value.fix)


@pytest.mark.parametrize("text", ["uint8:token", "uint8:tensor:step", "uint4:group=32:dynamic"])
def test_codes_without_a_sign_need_zero_points_that_are_known_at_build(text: str) -> None:
    with pytest.raises(RecipeError, match="needs zero points") as refused:
        parse_spec(text)
    assert refused.value.fix == f"use {text.split(':')[0][1:]}, which has a sign"


def test_a_format_of_scales_needs_groups() -> None:
    with pytest.raises(RecipeError, match="scale=uint4"):
        parse_spec("int8:channel:scale=uint4")


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("int8:channel", 8),
        ("int4:group=32", 5),
        ("int4:group=32:scale=float16", 4.5),
        ("int4:group=64:scale=uint4", 4.0625),
        ("nvfp4", 4.5),
        ("mxfp4", 4.25),
    ],
)
def test_bits_count_what_scales_take(text: str, bits: float) -> None:
    spec = parse_spec(text)
    assert spec is not None and spec.bits == bits


@pytest.mark.parametrize(
    ("text", "per", "wide"),
    [
        ("int4:group=64:scale=uint4", "channel", "int8:channel:scale=float16"),
        ("uint4:tensor", "tensor", "uint8:tensor"),
        ("int4:group=32:dynamic", "token", "int8:token"),
        ("int4:tensor:step", "token", "int8:tensor:step"),
        ("nvfp4", "channel", "e4m3:channel"),
        ("e4m3:token", "channel", "e4m3:token"),
    ],
)
def test_few_bits_become_eight(text: str, per: str, wide: str) -> None:
    spec = parse_spec(text)
    assert spec is not None and str(spec.widened(per)) == wide


def test_scales_are_spread_over_all_but_the_first_axis() -> None:
    shape, scale = (3, 2, 2, 2), torch.arange(9.0).reshape(3, 3)
    found = spread(scale, shape, 3).numpy()
    for row, channel, y, x in itertools.product(range(3), range(2), range(2), range(2)):
        assert found[row, channel, y, x] == scale[row, (channel * 4 + y * 2 + x) // 3]
    rows = np.broadcast_to(spread(torch.arange(3.0), shape, 0), shape)
    assert (rows == np.arange(3.0)[:, None, None, None]).all()
