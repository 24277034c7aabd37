"""Compute the largest components of each weight in a low-rank branch of 16 bits, and quantize the residual.

Paper: Li et al., "SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models", ICLR 2025,
       https://arxiv.org/abs/2411.05007 (section 4; rank 32 as in its code). The singular vectors are computed by
       algorithm 4.4 of Halko, Martinsson and Tropp, "Finding Structure with Randomness", 2011.

Before (weights int4:group=32, activations int8:tensor):
    y = linear(fake_quantize(x, scale, int8), dequantize(quantized, scales, int4))

After:
    z = x * s
    y = linear(fake_quantize(z, small, int8), dequantize(rest, rest_scales, int4)) + linear(linear(z, down), up)

where ``rest`` is ``w / s - up @ down``, quantized.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.layer_error import layer_inputs
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.refusals import against_rounding, against_smoothing
from diffc.compiler.quantization.scales import weight_scales
from diffc.compiler.quantization.smoothing import searched

SHARE = 4
"""The rank is at most the number of a weight's rows or columns divided by this."""

STORED_BITS = 16
"""The bits of each value of a low-rank branch."""

OVERSAMPLING, POWERS = 16, 4
"""The random directions beyond the rank, and the number of times that the weight is applied to them."""


def svdquant(plan: Plan, *, rank: int = 32, room: float = 0.5, iterations: int = 0, samples: int = 16) -> Plan:
    """Add a low-rank branch to each layer to be rounded, in the components whose activations are quantized, if any.

    A small weight has a branch of lower rank, which takes at most ``room`` times the space of the rounded weight.
    Channels that no pass has smoothed are smoothed by the strength that is best with the branch, measured on
    ``samples`` of each graph. With ``iterations`` the branch is fitted again to the error of rounding, and the best is
    used.
    """
    if rank < 1:
        raise PassError(f"svdquant: the rank is {rank}", fix="use 1 or more, such as 32")

    computed = {layer.component for layer in plan.layers if layer.scheme.activation is not None}

    def reason(layer: Layer) -> str:
        if against := _against_branch(layer):
            return against
        if computed and layer.component not in computed:
            return "the activations of its component stay in float"
        return "" if _rank(layer, rank, room) else f"a branch takes more than {room:g} times the space of its weight"

    def branched(layer: Layer) -> Layer:
        return _branched(layer, _rank(layer, rank, room), iterations)

    plan = plan.refused("svdquant", reason)
    open_ = [layer for layer in plan.layers if not against_smoothing(layer) and not reason(layer)]
    smoothed = {
        layer.name: searched(layer, inputs, branched) for layer, inputs in layer_inputs(plan, open_, samples=samples)
    }
    plan = plan.mapped(lambda layer: smoothed[layer.name], lambda layer: layer.name in smoothed)
    return plan.mapped(branched, lambda layer: not reason(layer))


def _against_branch(layer: Layer) -> str:
    """Return why a layer cannot have a branch of its own."""
    if against := against_rounding(layer):
        return against
    assert layer.weight is not None
    reasons = {
        "its convolution is grouped": layer.groups > 1,
        "it has a low-rank branch already": layer.branch is not None,
        f"its weight has less than {SHARE} rows or columns": min(layer.weight.flatten(1).shape) < SHARE,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _rank(layer: Layer, rank: int, space: float) -> int:
    """Return the rank of a layer's low-rank branch."""
    assert layer.weight is not None and layer.scheme.weight is not None
    rows, columns = layer.weight.flatten(1).shape
    affordable = space * layer.scheme.weight.bits * rows * columns / (STORED_BITS * (rows + columns))
    return min(rank, min(rows, columns) // SHARE, int(affordable))


def _branched(layer: Layer, rank: int, iterations: int) -> Layer:
    spec, full = layer.scheme.weight, layer.matrix()
    assert spec is not None
    best, least, target = layer, float("inf"), full
    for _ in range(iterations + 1):
        tried = replace(layer, branch=_low_rank(target.flatten(1), rank))
        if not iterations:
            return tried
        rest = tried.matrix()
        rounded = weight_scales(rest, spec, "minmax").value(spec)
        error = float((rounded - rest).square().sum())
        best, least = (tried, error) if error < least else (best, least)
        target = full - rounded
    return best


def _low_rank(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the factors [rank, columns] and [rows, rank] of the best approximation, rounded to float16."""
    random = torch.Generator().manual_seed(0)
    wide = min(rank + OVERSAMPLING, *matrix.shape)
    smoothed = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], wide, generator=random))[0]
    for _ in range(POWERS):
        smoothed = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ smoothed)[0])[0]
    left, values, right = torch.linalg.svd(smoothed.T @ matrix, full_matrices=False)
    root = values[:rank].sqrt()
    return _stored(root[:, None] * right[:rank]), _stored(smoothed @ left[:, :rank] * root)


def _stored(factor: torch.Tensor) -> torch.Tensor:
    return factor.half().float()
