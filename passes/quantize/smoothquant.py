"""Balance each channel of a layer's input with its column of the weight, so that neither has outliers to be rounded to.

Paper: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for LLMs", ICML 2023,
       https://arxiv.org/abs/2211.10438 (equation 4). With no ``alpha`` it is searched for each layer by the
       error of the output, as Lin et al., "AWQ", MLSys 2024, search theirs.

Before (inside a graph):
    y = linear(x, w)

After:
    y = linear(x * m, w / m)    with m = max|w|^(1 - alpha) / max|x|^alpha for each channel: 1 / s of equation 4
"""

from __future__ import annotations

from dataclasses import replace

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.layer_error import seen
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.smoothing import can_be_balanced, factors, searched


def smoothquant(plan: Plan, *, alpha: float | None = None, samples: int = 16) -> Plan:
    """Balance the layers whose weights and inputs are quantized, and of which nothing else is decided yet.

    ``alpha`` says how much of the difficulty moves to the weight; ``samples`` of each graph are looked at.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise PassError(f"smoothquant: alpha is {alpha}", fix="use a number from 0 to 1, or none to search")
    found = {
        layer.name: searched(layer, given)
        if alpha is None
        else replace(layer, smoothing=factors(layer, given, alpha)[0])
        for layer, given in seen(plan, list(filter(can_be_balanced, plan.layers)), samples=samples)
    }
    return plan.mapped(lambda layer: found[layer.name], lambda layer: layer.name in found)
