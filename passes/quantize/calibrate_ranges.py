"""Choose the range of every activation with a static or step-indexed scale from its values along the trajectory.

Source: ranges by percentile and by divergence, Migacz, "8-bit Inference with TensorRT", GTC 2017; by least squared
        error, Banner et al., "Post-training 4-bit Quantization of Convolution Networks for Rapid-Deployment", 2019.

Before (weights int8:channel, activations uint8:tensor):
    y = linear(x, w)

After:
    y = linear(fake_quantize(x, scale, zero, uint8), w)
"""

from __future__ import annotations

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.ranges import METHODS, needs_range, ranged
from diffc.compiler.quantization.refusals import RANGED, UNREACHED


def calibrate_ranges(plan: Plan, *, by: str = "mse") -> Plan:
    """Set the ranges of inputs and outputs that need one and have none."""
    if by not in METHODS:
        raise PassError(f"calibrate_ranges: {by!r} is no range method", fix=f"use {', '.join(METHODS)}")
    targets = [layer for layer in plan.layers if needs_range(layer)]
    statistics = plan.statistics(targets)
    plan = plan.refused("calibrate_ranges", lambda layer: _against(layer, layer.name in statistics))
    return plan.mapped(lambda layer: ranged(layer, statistics[layer.name], by), lambda each: each.name in statistics)


def _against(layer: Layer, is_reached: bool) -> str:
    """Return why a layer gets no ranges."""
    if layer.low is not None:
        return RANGED
    if not needs_range(layer):
        return "its inputs and output stay in float, or have scales that are computed at run time"
    return "" if is_reached else UNREACHED
