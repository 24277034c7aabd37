"""Scale each channel of a layer's input, and its column of the weight inversely, so that neither has outliers.

Paper: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for LLMs", ICML 2023,
       https://arxiv.org/abs/2211.10438 (equation 4). With no ``alpha`` it is searched for each layer by the
       error of the output, as Lin et al., "AWQ", MLSys 2024, search theirs.

Before (weights int8:channel, activations int8:tensor):
    y = linear(fake_quantize(x, scale, int8), dequantize(quantized, scales, int8))

After (alpha=0.5):
    y = linear(fake_quantize(x * s, smaller_scale, int8), dequantize(smoothed, smooth_scales, int8))

where ``s = max|w|^(1 - alpha) / max|x|^alpha`` for each channel, and ``smoothed`` is ``w / s``, quantized.
"""

from __future__ import annotations

from dataclasses import replace

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.layer_error import layer_inputs
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.refusals import UNREACHED, against_smoothing
from diffc.compiler.quantization.smoothing import factors, searched

UNHELPED = "no smoothing that was tried makes the error of its output smaller"


def smoothquant(plan: Plan, *, alpha: float | None = None, samples: int = 16) -> Plan:
    """Smooth the layers whose weights and inputs are quantized, and of which nothing else is decided yet.

    ``alpha`` is the migration strength, the share of outliers that moves to the weight; ``samples`` of each graph are
    run.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise PassError(f"smoothquant: alpha is {alpha}", fix="use a number from 0 to 1, or none to search")
    smoothed = {
        layer.name: searched(layer, inputs)
        if alpha is None
        else replace(layer, smoothing=factors(layer, inputs, alpha)[0])
        for layer, inputs in layer_inputs(
            plan, [layer for layer in plan.layers if not against_smoothing(layer)], samples=samples
        )
    }

    def reason(layer: Layer) -> str:
        unhelped = "" if layer.name in smoothed and smoothed[layer.name].smoothing is not None else UNHELPED
        return against_smoothing(layer) or ("" if layer.name in smoothed else UNREACHED) or unhelped

    plan = plan.refused("smoothquant", reason)
    return plan.mapped(lambda layer: smoothed[layer.name], lambda layer: layer.name in smoothed)
