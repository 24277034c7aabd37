"""Replace dynamic per-token scales by one static scale where the output's error hardly grows.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML
        2023, https://arxiv.org/abs/2211.10438 (its levels O1, a dynamic per-token scale, and O3, one that is known
        at build and costs nothing at run time); the choice for each layer by measured error is ours.

Before (weights int8:channel, activations int8:token):
    t = max(abs(x)) / 127
    y = linear(fake_quantize(x / t, one, int8), dequantize(quantized, scales, int8)) * t

After (loss=40.0):
    y = linear(fake_quantize(x, scale, zero, uint8), dequantize(quantized, scales, int8))
"""

from __future__ import annotations

import math
from dataclasses import replace

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.formats import FORMATS, Spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.layer_error import layer_inputs
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.ranges import METHODS, needs_range, ranged
from diffc.compiler.quantization.refusals import UNREACHED


def static_scales(plan: Plan, *, by: str = "mse", loss: float = 4.0, samples: int = 8) -> Plan:
    """Choose among linear layers with per-token scales, and set all ranges: the trajectory is run once for both.

    ``loss`` is the largest increase of the output's error, in dB. Ranges are chosen by all samples, and the error is
    measured on ``samples`` of each graph.
    """
    if by not in METHODS:
        raise PassError(f"static_scales: {by!r} is no range method", fix=f"use {', '.join(METHODS)}")
    by_token = [layer for layer in plan.layers if _has_token_scales(layer)]
    others = [layer for layer in plan.layers if needs_range(layer) and not _has_token_scales(layer)]
    targets = [*map(_static, by_token), *others]
    statistics = plan.statistics(targets)
    ranged_layers = {
        layer.name: ranged(layer, statistics[layer.name], by) for layer in targets if layer.name in statistics
    }
    for layer, inputs in layer_inputs(
        plan, [layer for layer in by_token if layer.name in ranged_layers], samples=samples
    ):
        if inputs.error(layer, ranged_layers[layer.name]) > inputs.error(layer, layer) * math.pow(10, loss / 10):
            ranged_layers[layer.name] = layer

    def reason(layer: Layer) -> str:
        if not _has_token_scales(layer):
            return "its activation is not integers with a scale for each token, of a linear layer"
        if layer.name not in ranged_layers:
            return UNREACHED
        return (
            ""
            if ranged_layers[layer.name] is not layer
            else f"one static scale makes its error over {loss:g} dB larger"
        )

    plan = plan.refused("static_scales", reason)
    return plan.mapped(lambda layer: ranged_layers[layer.name], lambda layer: layer.name in ranged_layers)


def _has_token_scales(layer: Layer) -> bool:
    spec = layer.scheme.activation
    return layer.kind == "linear" and spec is not None and spec.per == "token" and spec.format.is_integer


def _static(layer: Layer) -> Layer:
    """Return a spec with one scale and a zero point."""
    spec = layer.scheme.activation
    assert spec is not None
    form = FORMATS[f"u{spec.format.name.removeprefix('u')}"]
    return replace(layer, scheme=replace(layer.scheme, activation=Spec(form)))
