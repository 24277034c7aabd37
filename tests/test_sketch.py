"""A sketch that draws something else than a technique does is refused."""

from __future__ import annotations

import importlib

import pytest

from diffc.passes.quantize import TECHNIQUES
from tests import sketch


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("calibrate_ranges", "fake_quantize(x, scale, zero, uint8)", "fake_quantize(x, scale, zero, int8)"),
        ("calibrate_ranges", "fake_quantize(x, scale, zero, uint8)", "fake_quantize(x, scale, scale, uint8)"),
        ("round_to_nearest", "dequantize(codes, scale, int4)", "w"),
        ("gptq", "dequantize(codes, scale, int4)", "dequantize(nearest, scale, int4)"),
        ("gptq", "dequantize(codes, scale, int4)", "dequantize(codes, other, int4)"),
        ("smoothquant", "x * s", "x / s"),
        ("q_diffusion", "x[:, c:], second", "x[:, :c], second"),
    ],
)
def test_a_wrong_drawing_is_refused(name: str, right: str, wrong: str) -> None:
    text = importlib.import_module(f"diffc.passes.quantize.{name}").__doc__ or ""
    before, after = text.split("After", 1)
    assert right in after
    with pytest.raises(AssertionError, match="drawn:"):
        sketch.check(f"{before}After{after.replace(right, wrong)}", TECHNIQUES[name])
