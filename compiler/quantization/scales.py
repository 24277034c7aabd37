"""Choose the scales of weights, and round weights to nearest."""

from __future__ import annotations

from dataclasses import replace

import torch

from diffc.compiler.quantization.formats import FORMATS, Spec, spread
from diffc.compiler.quantization.layer import Rounded
from diffc.compiler.quantization.ops import scale_and_zero

RATIOS = torch.linspace(0.35, 1.0, 27)
"""The parts of the full range that a search tries."""


def weight_scales(weight: torch.Tensor, spec: Spec, by: str) -> Rounded:
    """Choose the scales of a weight, by its largest values or by least squared error, and round it to nearest."""
    groups = _groups(weight, spec)
    low, high = groups.amin(-1), groups.amax(-1)
    # Scales of scales are those of the full range, so that each scale can be chosen for itself.
    outer = _outer(spec, scale_and_zero(spec, low, high)[0])
    if by != "mse":
        return _nearest(weight, spec, low, high, outer)
    least = torch.full(groups.shape[:-1], float("inf"))
    best = torch.ones_like(least)
    for ratio in RATIOS:
        rounded = _nearest(weight, spec, low * ratio, high * ratio, outer)
        error = ((_groups(rounded.value(spec), spec) - groups) ** 2).sum(-1)
        best = torch.where(error < least, ratio, best)
        least = torch.minimum(error, least)
    return _nearest(weight, spec, low * best, high * best, outer)


def round_nearest(weight: torch.Tensor, spec: Spec, like: Rounded) -> Rounded:
    """Round another weight with the scales of one that was rounded."""
    scale = like.scale if like.outer is None else like.scale * like.outer.reshape(-1, 1)
    scales = spread(scale, weight.shape, spec.group)
    offset = 0.0 if like.zero is None else spread(like.zero, weight.shape, spec.group)
    quantized = spec.format.encode(spec.format.round(weight / scales + offset))
    return Rounded(quantized, like.scale, like.zero, like.outer)


def takes_factors(spec: Spec) -> bool:
    """Return whether each row of a weight has scales of its own that any factor can be folded into."""
    return spec.per != "tensor" and (spec.scale not in FORMATS or FORMATS[spec.scale].is_integer)


def rows_scaled(rounded: Rounded, spec: Spec, factor: torch.Tensor) -> Rounded:
    """Multiply the rows of a weight by factors [rows], which are folded into its scales."""
    if rounded.outer is not None:
        return replace(rounded, outer=_half(rounded.outer * factor))
    scale = rounded.scale * factor.reshape(-1, *[1] * (rounded.scale.dim() - 1))
    return replace(rounded, scale=_half(scale) if spec.scale == "float16" else scale)


def _nearest(
    weight: torch.Tensor, spec: Spec, low: torch.Tensor, high: torch.Tensor, outer: torch.Tensor | None
) -> Rounded:
    scale, zero = scale_and_zero(spec, low, high)
    if spec.scale == "float16":
        scale = _half(scale)
    elif outer is not None:
        scale = _scales_of_scales(spec, scale, outer)
    return round_nearest(weight, spec, Rounded(weight, scale, zero, outer))


def _outer(spec: Spec, scale: torch.Tensor) -> torch.Tensor | None:
    """Return the scales of scales: one for each row if those are integers, else one for all."""
    if spec.scale not in FORMATS:
        return None
    form = FORMATS[spec.scale]
    if spec.scale == "e8m0":
        return torch.ones(1)
    return _half(scale.amax(-1) / form.highest) if form.is_integer else (scale.amax() / form.highest).reshape(1)


def _half(scale: torch.Tensor) -> torch.Tensor:
    """Round scales to 16 bits, above zero."""
    return scale.half().float().clamp(min=2.0**-24)


def _scales_of_scales(spec: Spec, scale: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    form = FORMATS[spec.scale]
    if spec.scale == "e8m0":
        return torch.exp2(torch.log2(scale).ceil())
    ratio = scale / outer.reshape(-1, 1)
    return ratio.round().clamp(1, form.highest) if form.is_integer else form.round(ratio).clamp(min=2.0**-9)


def _groups(weight: torch.Tensor, spec: Spec) -> torch.Tensor:
    """Arrange a weight as its scales see it: [1, all], [rows, channels] or [rows, groups, group]."""
    rows = weight.reshape(1 if spec.per == "tensor" else len(weight), -1)
    if spec.per != "group":
        return rows
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % spec.group))
    return padded.reshape(len(rows), -1, spec.group)
