"""A sketch that draws something else than a technique does is refused."""

from __future__ import annotations

import importlib

import pytest

from diffc.passes.quantize import TECHNIQUES
from tests import graph_sketch, program_sketch, sketch


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("calibrate_ranges", "fake_quantize(x, scale, zero, uint8)", "fake_quantize(x, scale, zero, int8)"),
        ("calibrate_ranges", "fake_quantize(x, scale, zero, uint8)", "fake_quantize(x, scale, scale, uint8)"),
        ("round_to_nearest", "dequantize(quantized, scale, int4)", "w"),
        ("gptq", "dequantize(quantized, scale, int4)", "dequantize(nearest, scale, int4)"),
        ("gptq", "dequantize(quantized, scale, int4)", "dequantize(quantized, other, int4)"),
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


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("deepcache", "y1 = outer_up(h1, d0)", "y1 = outer_up(h0, d0)"),
        ("deepcache", "    d0 = deep(h0)\n", ""),
        ("deepcache", "h1 = outer_down(x1)", "h1 = deep(x1)"),
        ("faster_diffusion", "y1 = decoder(h0, d0)", "y1 = decoder(d0, h0)"),
        ("cachequant", "corrected(d0, factor, term)", "corrected(d0, factor, factor)"),
        ("delta_dit", "linear(d0, h0; 1, -1)", "linear(d0, h0; 1, 1)"),
    ],
)
def test_wrong_calls_are_refused(name: str, right: str, wrong: str) -> None:
    text = importlib.import_module(f"diffc.passes.cache.{name}").__doc__ or ""
    before, after = text.split("After", 1)
    assert right in after
    with pytest.raises(AssertionError, match="drawn:"):
        program_sketch.check(f"{before}After{after.replace(right, wrong)}", name)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("mixed_precision", "linear(half(x), half(w))", "linear(half(x), w)"),
        ("mixed_precision", "sqrt(mean(y * y))", "half(sqrt(mean(y * y)))"),
        ("stage", "table + linear(pooled, w2)", "table + linear(pooled, w3)"),
        ("stage", "    request = linear(text, w4)\n", ""),
        ("stage", "attention(hidden, request)", "attention(hidden, request_step)"),
    ],
)
def test_other_graphs_are_refused(name: str, right: str, wrong: str) -> None:
    module = importlib.import_module(f"diffc.passes.{name}")
    before, after = (module.__doc__ or "").split("After", 1)
    assert right in after
    with pytest.raises(AssertionError, match="drawn:"):
        graph_sketch.check(f"{before}After{after.replace(right, wrong)}", getattr(module, name))
