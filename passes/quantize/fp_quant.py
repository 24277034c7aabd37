"""Choose for each layer how an eight-bit float shares its bits between range and precision, by the error of the output.

Paper: Chen et al., "Low-Bitwidth Floating Point Quantization for Efficient High-Quality Diffusion Models", 2024,
       https://arxiv.org/abs/2408.06995. Of the formats that the paper searches, those of today's hardware remain:
       e4m3 and e5m2, and e2m1 for four bits. Its bias of a format is the scale here, which the next rounding
       technique searches; learned rounding is a technique of its own, for all number formats.

Before (weights e5m2:channel, activations e5m2:tensor):
    y = linear(fake_quantize(x, scale, e5m2), dequantize(quantized, scales, e5m2))

After:
    y = linear(fake_quantize(x, other_scale, e4m3), dequantize(other_quantized, other_scales, e4m3))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.formats import FORMATS, Scheme, Spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.layer_error import layer_inputs
from diffc.compiler.quantization.observers import Statistics
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.ranges import METHODS, ranged
from diffc.compiler.quantization.refusals import RANGED, ROUNDED, UNREACHED

EIGHT_BITS = ("e4m3", "e5m2")
"""The candidates; of equal errors the first wins."""


def fp_quant(plan: Plan, *, by: str = "mse", samples: int = 16) -> Plan:
    """Choose the formats of weights and inputs that are eight-bit floats, and neither rounded nor with a range.

    ``by`` is the range method of static scales, whose ranges are set too; the error is measured on ``samples`` of each
    graph.
    """
    if by not in METHODS:
        raise PassError(f"fp_quant: {by!r} is no range method", fix=f"use {', '.join(METHODS)}")
    targets = [layer for layer in plan.layers if not _against(layer)]
    statistics = plan.statistics([layer for layer in targets if _has_range(layer)])
    best = dict[str, Layer]()
    for layer, inputs in layer_inputs(plan, targets, samples=samples):
        tried = _candidates(layer, statistics.get(layer.name, ()), by)
        errors = [inputs.error(layer, candidate) for candidate in tried]
        best[layer.name] = tried[errors.index(min(errors))]
    plan = plan.refused("fp_quant", lambda layer: _against(layer) or ("" if layer.name in best else UNREACHED))
    return plan.mapped(lambda layer: best[layer.name], lambda layer: layer.name in best)


def _against(layer: Layer) -> str:
    """Return why the formats of a layer are not chosen."""
    if layer.kind not in ("linear", "conv") or len(_schemes(layer)) == 1:
        return "neither its weight nor its activation is an eight-bit float of a linear layer or a convolution"
    return RANGED if layer.low is not None else "" if layer.rounded is None else ROUNDED


def _candidates(layer: Layer, statistics: Sequence[Statistics], by: str) -> list[Layer]:
    tried = [replace(layer, scheme=scheme) for scheme in _schemes(layer)]
    return [ranged(candidate, statistics, by) for candidate in tried] if statistics else tried


def _has_range(layer: Layer) -> bool:
    spec = layer.scheme.activation
    return layer.scheme.output is not None or (spec is not None and spec.when != "dynamic" and spec.per != "group")


def _schemes(layer: Layer) -> list[Scheme]:
    pairs = product(_formats(layer.scheme.weight), _formats(layer.scheme.activation))
    return [replace(layer.scheme, weight=weight, activation=activation) for weight, activation in pairs]


def _formats(spec: Spec | None) -> list[Spec | None]:
    if spec is None or spec.format.name not in EIGHT_BITS:
        return [spec]
    return [replace(spec, format=FORMATS[name]) for name in EIGHT_BITS]
