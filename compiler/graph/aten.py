"""State the facts about operators that analyses and passes rely on: one table, keyed by overload.

Two facts come from PyTorch itself: its schemas mark views, its tags mark pointwise operators. Every other fact is a row
of `ROWS`, and is checked against the operator's results in ``tests/compiler/graph/test_aten.py``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from enum import Flag, auto
from functools import cache
from typing import Any

import torch

aten = torch.ops.aten


class Trait(Flag):
    """Name a fact about an operator; a fact about operands is one about its tensors."""

    NONE = 0
    VIEW = auto()
    """Its result shares the memory of its first operand."""
    POINTWISE = auto()
    """It computes each element from the elements in the same place."""
    MOVES = auto()
    """Each element of its result is an element of an operand, whatever the values."""
    PADS = auto()
    """It puts constants around its operand."""
    IDENTITY = auto()
    """Where its result has the shape of its operand, it has the same elements, in its own type."""
    RESHAPES = auto()
    """Its result has the elements of its operand, in the same order."""
    BOUNDED = auto()
    """No element of its result is smaller or larger than all elements of its operands."""
    LINEAR = auto()
    """It moves and adds elements, with factors that are the same for all: linear in all operands together."""
    BILINEAR = auto()
    """It is linear in either of its first two operands; a quotient in the first alone."""
    PRODUCT = auto()
    """It sums products of its first operand and its second."""
    NORMALIZES = auto()
    """It normalizes its first operand, and leaves each channel where it is."""
    CONVERTS = auto()
    """Its result is its first operand in another type."""
    LAYER = auto()
    """It is a layer of a network: values computed from its result are features, not positions or times."""
    SQUARES = auto()
    """It computes squares, or a sum or a mean of them."""
    AVERAGES = auto()
    """It may stand between the squares and the root of a root mean square."""
    NEEDS_FLOAT32 = auto()
    """Its result is noise if its operands have been rounded to 16 bits, or 16 bits do not hold what it sums."""


_MOVES = Trait.MOVES | Trait.BOUNDED | Trait.LINEAR
_KEEPS = _MOVES | Trait.IDENTITY
_RESHAPES = _KEEPS | Trait.RESHAPES
_CONVERTS = Trait.CONVERTS | Trait.IDENTITY | Trait.BOUNDED
_WEIGHS = Trait.PRODUCT | Trait.LAYER
_NORMALIZES = Trait.NORMALIZES | Trait.LAYER

ROWS: Mapping[Any, Trait] = {
    # Elements stay, or move.
    **dict.fromkeys((aten.alias, aten.detach, aten.clone, aten.contiguous), _RESHAPES),
    **dict.fromkeys((aten.view.default, aten.reshape, aten._unsafe_view, aten.view_as), _RESHAPES),
    **dict.fromkeys((aten.unsqueeze, aten.squeeze, aten.flatten.using_ints, aten.unflatten.int), _RESHAPES),
    **dict.fromkeys((aten.expand, aten.repeat, aten.slice.Tensor), _KEEPS),
    **dict.fromkeys((aten.permute, aten.transpose.int, aten.t, aten.select.int, aten.narrow.default), _MOVES),
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes, aten.chunk, aten.unbind.int), _MOVES),
    **dict.fromkeys((aten.cat.default, aten.stack, aten.pixel_shuffle, aten.pixel_unshuffle), _MOVES),
    operator.getitem: Trait.MOVES,
    **dict.fromkeys((aten.constant_pad_nd, aten.pad), Trait.PADS),
    **dict.fromkeys((aten.to, aten.type_as, aten._to_copy), _CONVERTS),
    # Elements are chosen, averaged or summed.
    **dict.fromkeys((aten.min.default, aten.min.other, aten.max.default, aten.max.other), Trait.BOUNDED),
    **dict.fromkeys((aten.amin, aten.amax), Trait.BOUNDED),
    **dict.fromkeys((aten.upsample_nearest2d, aten.upsample_bilinear2d), Trait.BOUNDED),
    aten._upsample_bilinear2d_aa: Trait.BOUNDED,
    **dict.fromkeys((aten.mean.default, aten.mean.dim), Trait.BOUNDED | Trait.LINEAR | Trait.AVERAGES),
    **dict.fromkeys((aten.sum.default, aten.sum.dim_IntList), Trait.LINEAR | Trait.AVERAGES),
    # Elements are computed with.
    aten.add.Tensor: Trait.LINEAR | Trait.AVERAGES,
    **dict.fromkeys((aten.sub.Tensor, aten.rsub.Tensor, aten.neg.default), Trait.LINEAR),
    **dict.fromkeys((aten.mul.Tensor, aten.div.Tensor), Trait.BILINEAR | Trait.AVERAGES),
    **dict.fromkeys((aten.mul.Scalar, aten.div.Scalar), Trait.LINEAR | Trait.AVERAGES),
    **dict.fromkeys((aten.add.Scalar, aten.clamp, aten.clamp_min, aten.maximum), Trait.AVERAGES),
    aten.square: Trait.SQUARES,
    **dict.fromkeys((aten.var, aten.linalg_vector_norm), Trait.SQUARES | Trait.NEEDS_FLOAT32),
    **dict.fromkeys((aten.var_mean, aten.std, aten.std_mean, aten.norm), Trait.NEEDS_FLOAT32),
    **dict.fromkeys((aten.sin, aten.cos, aten.tan, aten.exp, aten.exp2, aten.expm1), Trait.NEEDS_FLOAT32),
    **dict.fromkeys((aten.log, aten.log2, aten.log10, aten.log1p), Trait.NEEDS_FLOAT32),
    **dict.fromkeys((aten.cumsum, aten.cumprod, aten.logcumsumexp), Trait.NEEDS_FLOAT32),
    # Products and layers.
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.matmul), Trait.BILINEAR | Trait.PRODUCT),
    **dict.fromkeys((aten.linear, aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution), _WEIGHS),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), _WEIGHS),
    aten.scaled_dot_product_attention: _WEIGHS,  # of queries and keys
    **dict.fromkeys((aten.addmm, aten.embedding), Trait.LAYER),
    **dict.fromkeys((aten.group_norm, aten.layer_norm, aten.rms_norm, aten.batch_norm), _NORMALIZES),
}
"""Traits by operator: of one overload, or of all that return tensors."""

STRIDELESS = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}
"""Operators that depend on a tensor's strides, and those that compute the same and do not."""


def _overloads(row: Any) -> Iterator[Any]:
    """Yield an overload, or those of a packet that compute new tensors from tensors."""
    if not isinstance(row, torch._ops.OpOverloadPacket):
        yield row
        return
    for name in row.overloads():  # type: ignore[no-untyped-call]
        overload = getattr(row, name)
        schema = getattr(overload, "_schema", None)
        if schema is not None and not schema.is_mutable and "Tensor" in str(schema.arguments[0].type):
            yield overload


TRAITS: Mapping[Any, Trait] = {overload: traits for row, traits in ROWS.items() for overload in _overloads(row)}
"""Traits by overload, but for those that PyTorch states."""


@cache
def overload(name: str) -> Any:
    """Return the overload that a program's operator names, as ``aten.mul.Tensor``; None if it is none of ATen's."""
    namespace, _, rest = name.partition(".")
    packet, _, kind = rest.partition(".")
    return getattr(getattr(aten, packet), kind) if namespace == "aten" else None


@cache
def traits(target: Any) -> Trait:
    """Return all traits of an operator: the target of a node, or the name of a program's operator."""
    target = overload(target) if isinstance(target, str) else target
    known = TRAITS.get(target, Trait.NONE)
    if not isinstance(target, torch._ops.OpOverload):
        return known
    shared = (returned.alias_info for returned in target._schema.returns)
    if any(alias is not None and not alias.is_write for alias in shared):
        known |= Trait.VIEW
    return known | (Trait.POINTWISE if torch.Tag.pointwise in target.tags else Trait.NONE)


def has(target: Any, trait: Trait) -> bool:
    """Return whether an operator has one of some traits."""
    return bool(traits(target) & trait)
