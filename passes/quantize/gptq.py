"""Round the columns of each weight one after the other, and compensate the error in the columns that follow.

Paper: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023,
       https://arxiv.org/abs/2210.17323 (algorithm 1: Cholesky form, lazy updates of blocks; order by activation and
       fixed groups as in its published code). A convolution is a linear layer of windows. Scales of every kind are
       chosen beforehand, by least squared error; where a layer has more columns than a Hessian should, errors
       are compensated within parts of its channels.

Before (weights int4:channel):
    y = linear(x, dequantize(nearest, scale, int4))

After:
    y = linear(x, dequantize(quantized, scale, int4))

where ``quantized`` makes ``|x w' - x dequantize(quantized, scale)'|`` small; ``nearest`` is nearest to ``w / scale``.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.formats import Spec, spread
from diffc.compiler.quantization.hessians import by_block, from_blocks, hessians
from diffc.compiler.quantization.layer import Layer, Rounded
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.refusals import UNREACHED, against_rounding
from diffc.compiler.quantization.scales import weight_scales

LAZY = 128
"""The number of columns that are rounded before the rest is updated, in one product."""


def gptq(
    plan: Plan,
    *,
    samples: int = 32,
    windows: int = 8192,
    damping: float = 0.01,
    by_activation: bool = True,
    quantized_inputs: bool = True,
    memory: float = 1.0,
) -> Plan:
    """Round the weights of linear layers and convolutions that no pass before has rounded and that samples reach.

    ``samples`` of each graph are run, and ``windows`` of each layer's input enter its Hessian. ``damping`` times the
    mean of the Hessian's diagonal is added to it; Hessians take at most ``memory`` gigabytes at a time.
    """
    if damping <= 0:
        raise PassError(f"gptq: damping is {damping}", fix="use a number above 0, such as 0.01")
    targets = [layer for layer in plan.layers if not against_rounding(layer)]
    few = replace(plan, calibration=plan.calibration.few(samples))
    rounded = {
        layer.name: _rounded(layer, hessian, damping, by_activation)
        for layer, hessian in hessians(few, targets, windows=windows, quantized=quantized_inputs, memory=memory)
    }
    plan = plan.refused("gptq", lambda layer: against_rounding(layer) or ("" if layer.name in rounded else UNREACHED))
    return plan.mapped(lambda layer: replace(layer, rounded=rounded[layer.name]), lambda each: each.name in rounded)


def _rounded(layer: Layer, hessian: torch.Tensor, damping: float, by_activation: bool) -> Rounded:
    spec = layer.scheme.weight
    assert spec is not None
    weight = layer.matrix()
    start = weight_scales(weight, spec, "mse")
    scale = start.scale if start.outer is None else start.scale * start.outer.reshape(-1, 1)
    zero = torch.zeros_like(start.scale) if start.zero is None else start.zero
    parts = [weight, spread(scale, weight.shape, spec.group), spread(zero, weight.shape, spec.group)]
    columns, scales, zeros = (by_block(layer, part.expand_as(weight)).transpose(1, 2) for part in parts)
    order = hessian.diagonal(dim1=1, dim2=2).argsort(1, descending=True) if by_activation else None
    if order is not None:
        hessian = torch.stack([each[at][:, at] for each, at in zip(hessian, order, strict=True)])
        columns, scales, zeros = (_ordered(part, order) for part in (columns, scales, zeros))
    quantized = _fed_back(columns.clone(), scales, zeros, _feedback(hessian, damping), spec)
    if order is not None:
        quantized = _ordered(quantized, order.argsort(1))
    return replace(start, quantized=spec.format.encode(from_blocks(layer, quantized.transpose(1, 2)).contiguous()))


def _ordered(part: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return part.gather(1, order[..., None].expand_as(part))


def _feedback(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Compute the upper triangular factor U of the damped matrix's inverse U'U, [blocks, columns, columns].

    It is the inverse of the factor R of the matrix RR' itself, so that no inverse is factored.
    """
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    added = damping * diagonal.mean(1, keepdim=True)
    damped = hessian + torch.diag_embed(torch.where(added > 0, added, 1.0).expand_as(diagonal))
    factor = torch.linalg.cholesky(damped.flip(1, 2)).flip(1, 2)
    inverse: torch.Tensor = torch.linalg.solve_triangular(
        factor, torch.eye(hessian.shape[1]).expand_as(hessian), upper=True
    )
    return inverse


def _fed_back(
    columns: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, feedback: torch.Tensor, spec: Spec
) -> torch.Tensor:
    """Round columns [blocks, columns, rows] in place; return their quantized values."""
    quantized = torch.empty_like(columns)
    for first in range(0, columns.shape[1], LAZY):
        last = min(first + LAZY, columns.shape[1])
        errors = torch.empty_like(columns[:, first:last])
        for at in range(first, last):
            column, scale, zero = columns[:, at], scales[:, at], zeros[:, at]
            quantized[:, at] = spec.format.round(column / scale + zero)
            error = (column - (quantized[:, at] - zero) * scale) / feedback[:, at, at, None]
            columns[:, at + 1 : last] -= feedback[:, at, at + 1 : last, None] * error[:, None]
            errors[:, at - first] = error
        columns[:, last:].baddbmm_(feedback[:, first:last, last:].transpose(1, 2), errors, alpha=-1)
    return quantized
