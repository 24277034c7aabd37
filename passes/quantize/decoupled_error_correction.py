"""Correct each output channel of a rounded layer by a factor and a term, which its scales and its bias take in.

Paper: Liu et al., "CacheQuant: Comprehensively Accelerated Diffusion Models", CVPR 2025,
       https://arxiv.org/abs/2503.01323 (decoupled error correction: the error of a cache is corrected by itself, as
       the cache of this name does, and then the error of rounding). The paper's corrections differ from step to step;
       these are for all steps, so that they cost nothing when they run.

Before (weights int4:channel, activations int8:tensor):
    y = linear(fake_quantize(x, scale, int8), dequantize(quantized, w_scales, int4))

After:
    y = linear(fake_quantize(x, scale, int8), dequantize(quantized, corrected_scales, int4)) + b

where ``corrected_scales = a * w_scales``, and a and b are for each channel those with the smallest squared error of y
over the samples. Where there is a bias, b is added to it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import torch

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.observers import Lines
from diffc.compiler.quantization.plan import Plan, Tensors
from diffc.compiler.quantization.refusals import UNREACHED, against_weighted
from diffc.compiler.quantization.scales import rows_scaled, takes_factors
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest


def decoupled_error_correction(plan: Plan, *, samples: int = 32) -> Plan:
    """Correct the linear layers and convolutions that samples reach, after rounding those that no pass has rounded.

    ``samples`` of each graph are run. Rows whose scales cannot take in a factor have the factor 1.
    """
    plan = round_to_nearest(calibrate_ranges(plan))
    targets = [layer for layer in plan.layers if layer.kind in ("linear", "conv") and layer.rounded is not None]
    lines = defaultdict[str, Lines](Lines)

    def visit(layer: Layer, inputs: Tensors, _: torch.Tensor, sample: Sample) -> None:
        alone = replace(layer, weight=layer.matrix(), smoothing=None, branch=None, shift=None, bounds=None)
        quantized, exact = (each.apply(inputs[0], sample=sample) for each in (alone, alone.in_float()))
        lines[layer.name].add(_channels(layer, quantized), _channels(layer, exact))

    replace(plan, calibration=plan.calibration.few(samples)).watch(targets, visit)
    plan = plan.refused(
        "decoupled_error_correction",
        lambda layer: against_weighted(layer) or ("" if layer.name in lines else UNREACHED),
    )
    return plan.mapped(lambda layer: _corrected(layer, lines[layer.name]), lambda layer: layer.name in lines)


def _channels(layer: Layer, y: torch.Tensor) -> torch.Tensor:
    return y.movedim(layer.axis, 0).flatten(1)


def _corrected(layer: Layer, line: Lines) -> Layer:
    assert layer.rounded is not None and layer.scheme.weight is not None
    factor = line.factor()
    if not takes_factors(layer.scheme.weight):
        return replace(layer, shift=line.term(torch.ones_like(factor)).float())
    factor = torch.where(factor > 0, factor, 1.0)
    rounded = rows_scaled(layer.rounded, layer.scheme.weight, factor.float())
    return replace(layer, rounded=rounded, shift=line.term(factor).float())
