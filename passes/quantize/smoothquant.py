"""Balance each channel of a layer's input with its column of the weight, so that neither has outliers to be rounded to.

Paper: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for LLMs", ICML 2023,
       https://arxiv.org/abs/2211.10438 (equation 4). With no ``alpha`` it is searched for each layer by the
       error of the output, as Lin et al., "AWQ", MLSys 2024, search theirs.

Before (inside a graph):
    y = linear(x, w)

After:
    y = linear(x / s, w * s)    with s = max|x|^alpha / max|w|^(1 - alpha) for each channel
"""

from __future__ import annotations

from dataclasses import replace

import torch

from diffc.compiler.errors import PassError
from diffc.compiler.layer_error import Seen, seen
from diffc.compiler.quantization import Layer, Plan

ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""What a search tries, and to change nothing."""

SMALLEST = 1e-5
"""What the code of the paper keeps a factor above; its inverse is the largest."""


def smoothquant(plan: Plan, *, alpha: float | None = None, samples: int = 16) -> Plan:
    """Balance the layers whose weights and inputs are quantized, and of which nothing else is decided yet.

    ``alpha`` says how much of the difficulty moves to the weight; ``samples`` of each graph are looked at.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise PassError(f"smoothquant: alpha is {alpha}", fix="use a number from 0 to 1, or none to search")
    wanted = [layer for layer in plan.layers if _can_be_balanced(layer)]
    found = {layer.name: _balanced(layer, each, alpha) for layer, each in seen(plan, wanted, samples=samples)}
    return plan.mapped(lambda layer: replace(layer, smoothing=found[layer.name]), lambda each: each.name in found)


def _can_be_balanced(layer: Layer) -> bool:
    if layer.kind not in ("linear", "conv") or layer.groups > 1:
        return False
    is_open = layer.smoothing is None and layer.branch is None and layer.rounded is None and layer.low is None
    return is_open and layer.scheme.weight is not None and layer.scheme.activation is not None


def _balanced(layer: Layer, given: Seen, alpha: float | None) -> torch.Tensor | None:
    assert given.largest is not None
    if alpha is not None:
        return _factors(layer, given.largest, alpha)
    tried = [None, *(_factors(layer, given.largest, each) for each in ALPHAS)]
    errors = [given.error(layer, _candidate(layer, given.largest, factors)) for factors in tried]
    return tried[errors.index(min(errors))]


def _factors(layer: Layer, largest: torch.Tensor, alpha: float) -> torch.Tensor:
    """Give what multiplies the channels of the input; one that is always zero, or that nothing reads, is left alone."""
    inputs, weights = largest.amax(0), layer.matrix().transpose(0, 1).flatten(1).abs().amax(1)
    factors = weights.pow(1 - alpha) / inputs.pow(alpha)
    return torch.where((inputs > 0) & (weights > 0), factors, 1.0).clamp(SMALLEST, 1 / SMALLEST)


def _candidate(layer: Layer, largest: torch.Tensor, factors: torch.Tensor | None) -> Layer:
    """Give the layer with the ranges that it would have."""
    spec, candidate = layer.scheme.activation, replace(layer, smoothing=factors)
    if spec is None or spec.when == "dynamic" or spec.per == "group":
        return candidate
    bounds = (largest if factors is None else largest * factors).amax(1)[None]
    bounds = bounds if spec.when == "step" else bounds.amax(1, keepdim=True)
    return replace(candidate, low=-bounds, high=bounds)
