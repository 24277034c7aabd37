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
"""The part of all numbers that a percentile range covers on each side."""


LEVELS = 128
"""Into how many parts Migacz divides what is left, to compare distributions."""


METHODS = ("minmax", "percentile", "mse", "kl")


def needs_range(layer: Layer) -> bool:
    """Say whether inputs or the output of a layer need a range, and have none."""
    specs = (layer.scheme.activation, layer.scheme.values)
    known = [spec for spec in specs if spec is not None and spec.when != "dynamic" and spec.per != "group"]
    return layer.low is None and (layer.scheme.output is not None or bool(known))


def ranged(layer: Layer, statistics: Sequence[Statistics], by: str) -> Layer:
    """Set the ranges that a layer's scheme asks for, from what `Plan.statistics` gives."""
    output = layer.scheme.output
    inputs = statistics if output is None else statistics[:-1]
    specs = [layer.scheme.of_input(at) for at in range(len(inputs))]
    if any(spec is not None and spec.when != "dynamic" for spec in specs):
        found = torch.tensor([_ranges(each, spec, by) for each, spec in zip(inputs, specs, strict=True)])
        layer = replace(layer, low=found[..., 0], high=found[..., 1])
    if output is not None:
        layer = replace(layer, bounds=activation_range(statistics[-1].all(), output, by))
    return layer


def _ranges(statistics: Statistics, spec: Spec | None, by: str) -> list[tuple[float, float]]:
    """Give a range, or one for each step; a step that no sample shows has that of all, what stays in float its own."""
    whole = statistics.all()
    if spec is None:
        return [(whole.low, whole.high)]
    if spec.when != "step":
        return [activation_range(whole, spec, by)]
    return [activation_range(each if each.limit else whole, spec, by) for each in statistics.histograms]


def activation_range(histogram: Histogram, spec: Spec, by: str) -> tuple[float, float]:
    """Give the range of an activation that a scale is chosen for; numbers beyond it are cut off."""
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
    """Try parts of the range on either side, and keep the one with the least squared error."""
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
    """Choose the largest magnitude whose cut distribution, in few levels, is nearest to the whole one."""
    half = len(histogram.counts) // 2
    counts = histogram.counts[half:] + histogram.counts[:half].flip(0)
    best, least = half, float("inf")
    for kept in range(LEVELS, half + 1, max(1, (half - LEVELS) // 64)):
        wanted = counts[:kept].clone()
        wanted[-1] += counts[kept:].sum()
        level = torch.arange(kept) * LEVELS // kept
        full = (counts[:kept] > 0).double()
        sums = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, counts[:kept])
        sizes = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, full)
        made = (sums / sizes.clamp(min=1))[level] * full
        p, q = wanted / wanted.sum(), made / made.sum().clamp(min=1e-30)
        where = p > 0
        found = float((p[where] * (p[where] / q[where].clamp(min=1e-12)).log()).sum())
        best, least = (kept, found) if found < least else (best, least)
    largest = histogram.limit * best / half
    return max(histogram.low, -largest), min(histogram.high, largest)
