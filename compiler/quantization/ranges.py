"""Choose the ranges of activations: by their ends, a percentile, squared error or divergence.

Source: percentile and divergence, Migacz, "8-bit Inference with TensorRT", GTC 2017; squared error, Banner et al.,
        "Post-training 4-bit Quantization of Convolution Networks for Rapid-Deployment", NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from diffc.compiler.quantization.formats import Spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.observers import Histogram, Statistics
from diffc.compiler.quantization.ops import scale_and_zero
from diffc.compiler.quantization.scales import RATIOS

PERCENTILE = 0.9999
"""The part of all values that a percentile range covers on each side."""


LEVELS = 128
"""The number of levels in which Migacz compares distributions."""


METHODS = ("minmax", "percentile", "mse", "kl")


def needs_range(layer: Layer) -> bool:
    """Return whether inputs or the output of a layer need a range, and have none."""
    specs = (layer.scheme.activation, layer.scheme.values)
    static = [spec for spec in specs if spec is not None and spec.when != "dynamic" and spec.per != "group"]
    return layer.low is None and (layer.scheme.output is not None or bool(static))


def ranged(layer: Layer, statistics: Sequence[Statistics], by: str) -> Layer:
    """Choose the ranges that a layer's scheme needs, from its `Plan.statistics`."""
    output = layer.scheme.output
    inputs = statistics if output is None else statistics[:-1]
    specs = [layer.scheme.of_input(at) for at in range(len(inputs))]
    if any(spec is not None and spec.when != "dynamic" for spec in specs):
        bounds = torch.tensor([_ranges(histograms, spec, by) for histograms, spec in zip(inputs, specs, strict=True)])
        layer = replace(layer, low=bounds[..., 0], high=bounds[..., 1])
    if output is not None:
        layer = replace(layer, bounds=activation_range(statistics[-1].all(), output, by))
    return layer


def _ranges(statistics: Statistics, spec: Spec | None, by: str) -> list[tuple[float, float]]:
    """Return one range, or one per step; a step without samples has that of all, an input in float its full range."""
    all_steps = statistics.all()
    if spec is None:
        return [(all_steps.low, all_steps.high)]
    if spec.when != "step":
        return [activation_range(all_steps, spec, by)]
    return [
        activation_range(histogram if histogram.limit else all_steps, spec, by) for histogram in statistics.histograms
    ]


def activation_range(histogram: Histogram, spec: Spec, by: str) -> tuple[float, float]:
    """Choose the range of an activation; values beyond it saturate."""
    low, high = histogram.low, histogram.high
    if low >= high:
        return low, high
    if by == "percentile":
        low, high = _percentile(histogram)
    elif by == "kl":
        low, high = _divergence(histogram)
    elif by == "mse":
        low, high = _least_error(histogram, spec)
    return low, high


def _percentile(histogram: Histogram) -> tuple[float, float]:
    total, centres = histogram.counts.cumsum(0) / histogram.counts.sum(), histogram.centres()
    last = len(centres) - 1
    low = centres[min(last, int(torch.searchsorted(total, 1 - PERCENTILE)))]
    high = centres[min(last, int(torch.searchsorted(total, PERCENTILE)))]
    return max(histogram.low, float(low)), min(histogram.high, float(high))


def _least_error(histogram: Histogram, spec: Spec) -> tuple[float, float]:
    """Return the part of the range, cut on either side, that has the least squared error."""
    used = histogram.counts > 0
    x, counts = histogram.centres()[used].float(), histogram.counts[used].float()
    low = RATIOS * min(histogram.low, 0.0)
    high = RATIOS * max(histogram.high, 0.0)
    if not spec.is_affine:
        high = RATIOS * max(-histogram.low, histogram.high)
        low = -high
    pairs = torch.cartesian_prod(low, high) if spec.is_affine else torch.stack([low, high], 1)
    scale, zero = scale_and_zero(spec, pairs[:, :1], pairs[:, 1:])
    offset = torch.zeros(()) if zero is None else zero
    errors = (counts * ((spec.format.round(x / scale + offset) - offset) * scale - x) ** 2).sum(1)
    best = pairs[int(errors.argmin())]
    return float(best[0]), float(best[1])


def _divergence(histogram: Histogram) -> tuple[float, float]:
    """Return the largest magnitude whose clipped distribution, in few levels, is nearest to the full one."""
    half = len(histogram.counts) // 2
    counts = histogram.counts[half:] + histogram.counts[:half].flip(0)
    best, least = half, float("inf")
    for count in range(LEVELS, half + 1, max(1, (half - LEVELS) // 64)):
        clipped = counts[:count].clone()
        clipped[-1] += counts[count:].sum()
        level = torch.arange(count) * LEVELS // count
        full = (counts[:count] > 0).double()
        sums = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, counts[:count])
        sizes = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, full)
        coarse = (sums / sizes.clamp(min=1))[level] * full
        p, q = clipped / clipped.sum(), coarse / coarse.sum().clamp(min=1e-30)
        where = p > 0
        divergence = float((p[where] * (p[where] / q[where].clamp(min=1e-12)).log()).sum())
        best, least = (count, divergence) if divergence < least else (best, least)
    largest = histogram.limit * best / half
    return max(histogram.low, -largest), min(histogram.high, largest)
