"""Choose smoothing factors: they multiply the channels of a layer's input, and divide those of its weight.

Source: Xiao et al., "SmoothQuant", ICML 2023, equation 4, https://arxiv.org/abs/2211.10438; searched by the error of
        the output as Lin et al., "AWQ", MLSys 2024, search theirs, https://arxiv.org/abs/2306.00978.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.layer_error import Inputs

ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""The migration strengths that a search tries, beside no smoothing."""

SMALLEST = 2.0**-14
"""Lower clamp of smoothing factors, the smallest normal float16; its inverse is the upper clamp."""


def factors(layer: Layer, recorded: Inputs, *alphas: float) -> list[torch.Tensor]:
    """Compute the factors of the input's channels for each alpha: max|w|^(1 - alpha) / max|x|^alpha.

    They are the inverse of equation 4, which divides the input. A channel that is always zero, in the input or in the
    weight, has the factor 1.
    """
    assert recorded.largest is not None
    matrix = layer.matrix()
    inputs, weights = recorded.largest.amax(0), matrix.abs().amax((0, *range(2, matrix.dim())))
    alive = (inputs > 0) & (weights > 0)
    candidates = [torch.where(alive, weights.pow(1 - alpha) / inputs.pow(alpha), 1.0) for alpha in alphas]
    return [each.clamp(SMALLEST, 1 / SMALLEST).half().float() for each in candidates]


def searched(layer: Layer, recorded: Inputs, finish: Callable[[Layer], Layer] = lambda layer: layer) -> Layer:
    """Return the candidate, smoothed by one of `ALPHAS` or not at all and finished, with the least output error."""
    tried = [layer, *(replace(layer, smoothing=each) for each in factors(layer, recorded, *ALPHAS))]
    best, least = layer, float("inf")
    for candidate in map(finish, tried):
        error = recorded.error(layer, _ranged(candidate, recorded))
        best, least = (candidate, error) if error < least else (best, least)
    return best


def _ranged(layer: Layer, recorded: Inputs) -> Layer:
    """Return a layer with the full ranges of its input."""
    spec, largest = layer.scheme.activation, recorded.largest
    if spec is None or spec.when == "dynamic" or spec.per == "group" or largest is None:
        return layer
    bounds = (largest if layer.smoothing is None else largest * layer.smoothing).amax(1)[None]
    bounds = bounds if spec.when == "step" else bounds.amax(1, keepdim=True)
    return replace(layer, low=-bounds, high=bounds)
