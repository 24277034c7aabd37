"""Define the operators of quantized graphs: their meaning in PyTorch is what every engine must compute.

Back ends lower them to QuantizeLinear and DequantizeLinear, or to the low-bit operators of their engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import fx

from diffc.compiler.quantization.formats import FORMATS, Spec, parse_spec, spread

aten = torch.ops.aten

SMALLEST_SCALE = 1e-12
"""The dynamic scale of an activation that is zero."""

Value = TypeVar("Value", torch.Tensor, fx.Node)


@torch.library.custom_op("diffc::dequantize", mutates_args=())
def dequantize(
    quantized: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, group: int, form: str, dtype: torch.dtype
) -> torch.Tensor:
    """Compute ``scale * (quantized - zero)`` as ``dtype``, in the shape of ``quantized``, the quantized values.

    Scale and zero are [1], [rows], or with groups [rows, groups].
    """
    values = FORMATS[form].decode(quantized)
    if zero is not None:
        values = values - spread(zero.float(), quantized.shape, group)
    return (values * spread(scale.float(), quantized.shape, group)).to(dtype)


@dequantize.register_fake
def _(
    quantized: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, group: int, form: str, dtype: torch.dtype
) -> torch.Tensor:
    return torch.empty(quantized.shape, dtype=dtype)


@torch.library.custom_op("diffc::fake_quantize", mutates_args=())
def fake_quantize(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, form: str) -> torch.Tensor:
    """Round an activation to a number format, with one scale and zero point [1].

    A tie goes to the even number before the zero point is added, as in ONNX's QuantizeLinear.
    """
    number_format, factor = FORMATS[form], scale.to(_wide(x))
    scaled = x.to(_wide(x)) / factor
    if zero is None:
        return (number_format.round(scaled) * factor).to(x.dtype)
    quantized = (scaled.round() + zero.float()).clamp(number_format.lowest, number_format.highest)
    return ((quantized - zero.float()) * factor).to(x.dtype)


@fake_quantize.register_fake
def _(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, form: str) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype)


@torch.library.custom_op("diffc::fake_quantize_groups", mutates_args=())
def fake_quantize_groups(x: torch.Tensor, spec: str) -> torch.Tensor:
    """Round an activation [..., channels] to a number format, with a dynamic scale for each group of channels."""
    parsed = parse_spec(spec)
    assert parsed is not None
    rows = x.reshape(-1, x.shape[-1]).to(_wide(x))
    scale = spread(group_scales(parsed, rows), rows.shape, parsed.group)
    return (parsed.format.round(rows / scale) * scale).reshape(x.shape).to(x.dtype)


@fake_quantize_groups.register_fake
def _(x: torch.Tensor, spec: str) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype)


def _wide(x: torch.Tensor) -> torch.dtype:
    """Return the type in which values are rounded: halves are widened, as engines do."""
    return torch.promote_types(x.dtype, torch.float32)


def group_scales(spec: Spec, rows: torch.Tensor) -> torch.Tensor:
    """Return the scales [rows, groups] that map the largest value of each group to the format's largest.

    A scale stored as a power of two is the quotient of their powers of two: OCP MX 1.0, section 6.3.
    """
    padded = torch.nn.functional.pad(rows.abs(), (0, -rows.shape[1] % spec.group))
    largest = padded.reshape(len(rows), -1, spec.group).amax(-1)
    scale = largest / spec.format.highest
    if spec.scale == "e8m0":
        top = torch.tensor(spec.format.highest).frexp().exponent
        scale = torch.ldexp(torch.ones(largest.shape), largest.frexp().exponent - top)
    elif spec.scale in FORMATS:
        scale = FORMATS[spec.scale].round(scale)
    return torch.where(scale > 0, scale, 1.0)


def scale_and_zero(spec: Spec, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the scales, and for formats without a sign the zero points, that cover ranges."""
    number_format = spec.format
    if not spec.is_affine:
        largest = torch.maximum(low.abs(), high.abs())
        return torch.where(largest > 0, largest / number_format.highest, 1.0), None
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / (number_format.highest - number_format.lowest)
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, (number_format.lowest - low / scale).round().clamp(number_format.lowest, number_format.highest)


def quantize_in_range(x: torch.Tensor, spec: Spec, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Round an activation to a number format, with the static scale that covers a range [] or [1]."""
    scale, zero = scale_and_zero(spec, low, high)
    rounded: torch.Tensor = fake_quantize(x, scale.reshape(1), zero, spec.format.name)
    return rounded


def dynamic_scale(x: Value, spec: Spec, rank: int, call: Callable[..., Value]) -> Value:
    """Compute the dynamic scale of an activation of some rank: for each token [..., 1], or one for all [].

    ``call`` applies an operator to its arguments: at once to tensors, or in a graph to nodes.
    """
    token = spec.per == "token"
    largest = call(aten.amax.default, call(aten.abs.default, x), [-1] if token else list(range(rank)), token)
    return call(aten.clamp_min.default, call(aten.div.Tensor, largest, spec.format.highest), SMALLEST_SCALE)
