"""The facts about operators hold for what they compute, and agree with what PyTorch's schemas and tags state."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from diffc.compiler.graph.aten import STRIDELESS, TRAITS, Trait, has, overload, traits

aten = torch.ops.aten

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
A, B, C = X[0], Y[0], X.flatten(2)  # [4, 6, 6] and [2, 4, 36]
M, N = X[0, 0], Y[0, 0]  # [6, 6]
K = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(2))

EXAMPLES: Mapping[Any, tuple[Any, ...]] = {
    aten.view.default: (X, [8, 36]),
    aten.reshape.default: (X, [8, 36]),
    aten._unsafe_view.default: (X, [8, 36]),
    aten.view_as.default: (X, Y),
    aten.unsqueeze.default: (X, 1),
    aten.squeeze.dim: (X[:1], 0),
    aten.squeeze.dims: (X[:1], [0]),
    aten.flatten.using_ints: (X, 1, 2),
    aten.unflatten.int: (X, 1, [2, 2]),
    aten.expand.default: (X[:1], [3, 4, 6, 6]),
    aten.repeat.default: (X, [2, 1, 1, 1]),
    aten.slice.Tensor: (X, 2, 1, 4),
    aten.permute.default: (X, [0, 2, 3, 1]),
    aten.transpose.int: (X, 1, 2),
    aten.t.default: (M,),
    aten.select.int: (X, 1, 2),
    aten.narrow.default: (X, 1, 1, 2),
    aten.split.Tensor: (X, 2, 1),
    aten.split_with_sizes.default: (X, [1, 3], 1),
    aten.chunk.default: (X, 2, 1),
    aten.unbind.int: (X, 1),
    aten.cat.default: ([X, Y], 1),
    aten.stack.default: ([X, Y], 1),
    aten.pixel_shuffle.default: (X, 2),
    aten.pixel_unshuffle.default: (X, 2),
    operator.getitem: ([X, Y], 1),
    aten.constant_pad_nd.default: (X, [1, 1], 0.0),
    aten.pad.default: (X, [1, 1]),
    aten.to.device: (X, torch.device("cpu"), torch.float64),
    aten.to.dtype: (X, torch.float64),
    aten.to.other: (X, Y.double()),
    aten.to.prim_Device: (X, torch.device("cpu"), 7),
    aten.to.prim_dtype: (X, 7),
    aten.to.prim_other: (X,),
    aten.type_as.default: (X, Y.double()),
    aten.amin.default: (X, [1]),
    aten.amax.default: (X, [1]),
    aten.upsample_nearest2d.default: (X, [12, 12]),
    aten.upsample_nearest2d.vec: (X, [12, 12], None),
    aten.upsample_bilinear2d.default: (X, [12, 12], False),
    aten.upsample_bilinear2d.vec: (X, [12, 12], False, None),
    aten._upsample_bilinear2d_aa.default: (X, [3, 3], False),
    aten._upsample_bilinear2d_aa.vec: (X, [3, 3], False, None),
    aten.mean.dim: (X, [1, 2]),
    aten.sum.dim_IntList: (X, [1, 2]),
    aten.mul.Scalar: (X, 2.0),
    aten.div.Scalar: (X, 2.0),
    aten.add.Scalar: (X, 2.0),
    aten.clamp.default: (X, -0.5, 0.5),
    aten.clamp_min.default: (X, 0.5),
    aten.clamp.Tensor: (X, Y, Y + 1),
    aten.var.dim: (X, [1]),
    aten.var_mean.dim: (X, [1]),
    aten.std.dim: (X, [1]),
    aten.std_mean.dim: (X, [1]),
    aten.norm.Scalar: (X,),
    aten.norm.ScalarOpt_dim: (X, 2, [1]),
    aten.cumsum.default: (X, 1),
    aten.cumprod.default: (X, 1),
    aten.logcumsumexp.default: (X, 1),
    aten.mm.default: (M, N),
    aten.bmm.default: (A, B),
    aten.linear.default: (X, N),
    aten.conv1d.default: (C, K[..., 0]),
    aten.conv1d.padding: (C, K[..., 0]),
    aten.conv2d.default: (X, K),
    aten.conv2d.padding: (X, K),
    aten.conv3d.default: (X[:, :, None], K[:, :, None]),
    aten.conv3d.padding: (X[:, :, None], K[:, :, None]),
    aten.convolution.default: (X, K, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    aten.conv_transpose1d.default: (C, K[..., 0]),
    aten.conv_transpose2d.input: (X, K),
    aten.conv_transpose3d.input: (X[:, :, None], K[:, :, None]),
    aten.scaled_dot_product_attention.default: (X, Y, X),
    aten.addmm.default: (M, M, N),
    aten.embedding.default: (M, torch.tensor([1, 3])),
    aten.group_norm.default: (X, 2),
    aten.layer_norm.default: (X, [6]),
    aten.rms_norm.default: (X, [6]),
    aten.batch_norm.default: (X, None, None, None, None, True, 0.1, 1e-5, False),
}
"""Arguments for operators; others take two tensors or one."""

UNTRIED = {aten.to.dtype_layout, aten.norm.ScalarOpt_dim_dtype, aten.norm.ScalarOpt_dtype, aten.addmm.dtype}
"""Overloads that take keywords, or run on a GPU alone."""

TRIED = sorted(TRAITS.keys() - UNTRIED, key=str)


def example(target: Any) -> tuple[Any, ...]:
    """Return arguments for an operator, the tensors in double precision."""
    if target in EXAMPLES:
        args = EXAMPLES[target]
    else:
        required = [a for a in target._schema.arguments if not a.has_default_value() and "Tensor" in str(a.type)]
        args = (X, Y)[: len(required)]
    return pytree.tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, args)


def tensors(tree: Any) -> list[torch.Tensor]:
    """List the tensors of arguments or of a result."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def results(target: Any, args: tuple[Any, ...]) -> list[torch.Tensor]:
    """Apply an operator."""
    return tensors(target(*args))


def test_what_shares_memory_is_a_view_and_pointwise_operators_change_where_their_operand_does() -> None:
    """Both are read from PyTorch; the operators that it calls neither are watched here too."""
    hidden = (aten._unsafe_view.default, aten.type_as.default, operator.getitem)  # PyTorch declares no alias
    for target in TRIED:
        args = example(target)
        owner = tensors(args)[0].untyped_storage().data_ptr()
        shares = any(result.untyped_storage().data_ptr() == owner for result in tensors(target(*args)))
        assert has(target, Trait.VIEW) or not shares or target in hidden, target
        if has(target, Trait.POINTWISE):
            changed = args[0].abs() + 0.1
            before = results(target, (changed.clone(), *args[1:]))[0]
            changed[1, 2, 3, 4] += 0.01
            (places,) = (results(target, (changed, *args[1:]))[0] != before).nonzero()[None]
            assert places.tolist() in ([], [[1, 2, 3, 4]]), target


def moves(target: Any, args: Any) -> bool:
    elements = torch.cat([operand.flatten() for operand in tensors(args)])
    return all(bool(torch.isin(result, elements).all()) for result in results(target, args))


def pads(target: Any, args: Any) -> bool:
    (result,) = results(target, args)
    return bool(torch.isin(result[result != 0], args[0]).all()) and bool((result == 0).any())


def is_bounded(target: Any, args: Any) -> bool:
    elements = torch.cat([operand.flatten() for operand in tensors(args)])
    low, high = elements.min() - 1e-12, elements.max() + 1e-12
    return all(bool(low <= result.min() and result.max() <= high) for result in results(target, args))


def reshapes(target: Any, args: Any) -> bool:
    (result,) = results(target, args)
    return torch.equal(result.flatten(), args[0].flatten())


def is_identity(target: Any, args: Any) -> bool:
    alone = {aten.slice.Tensor: (), aten.repeat.default: ([1] * 4,)}
    alone |= dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default), (X.shape,))
    alone[aten.expand.default] = (X.shape,)
    (result,) = results(target, (X.double(), *alone.get(target, args[1:])))
    return result.shape != X.shape or torch.equal(result, X.double())


def is_linear(target: Any, args: Any) -> bool:
    other = pytree.tree_map_only(torch.Tensor, lambda t: t.flip(0) + 1, args)
    both = pytree.tree_map(lambda a, b: 2 * a - b if isinstance(a, torch.Tensor) else a, args, other)
    parts = zip(results(target, args), results(target, other), results(target, both), strict=True)
    return all(torch.allclose(total, 2 * one - two) for one, two, total in parts)


def is_bilinear(target: Any, args: Any) -> bool:
    x, y = args
    one, two, total, doubled = (results(target, a)[0] for a in ((x, y), (y, y), (2 * x - y, y), (x, 2 * y)))
    expected = one / 2 if target is aten.div.Tensor else 2 * one
    return torch.allclose(total, 2 * one - two) and torch.allclose(doubled, expected)


def is_product(target: Any, args: Any) -> bool:
    """An element of the first operand reaches many of the result; all but attention are linear in the second."""
    first, second, *rest = args
    one, doubled = (results(target, (first, factor, *rest))[0] for factor in (second, 2 * second))
    other = first.clone()
    other.view(-1)[first.numel() // 2] += 1
    (changed,) = results(target, (other, second, *rest))
    grows = torch.allclose(doubled, 2 * one) or target is aten.scaled_dot_product_attention.default
    return grows and int((changed != one).sum()) > 1


def normalizes(target: Any, args: Any) -> bool:
    before, after = (results(target, (args[0] * scale, *args[1:]))[0] for scale in (1e3, 2e3))
    return before.shape == args[0].shape and torch.allclose(before, after, rtol=1e-5, atol=1e-5)


def converts(target: Any, args: Any) -> bool:
    (result,) = results(target, args)
    return torch.equal(result.double(), args[0])


def squares(target: Any, args: Any) -> bool:
    one, doubled, negated = (results(target, (args[0] * scale, *args[1:]))[0] for scale in (1, 2, -1))
    return torch.allclose(one, negated) and (torch.allclose(doubled, 4 * one) or torch.allclose(doubled, 2 * one))


CHECKS = {
    Trait.MOVES: moves,
    Trait.PADS: pads,
    Trait.BOUNDED: is_bounded,
    Trait.RESHAPES: reshapes,
    Trait.IDENTITY: is_identity,
    Trait.LINEAR: is_linear,
    Trait.BILINEAR: is_bilinear,
    Trait.PRODUCT: is_product,
    Trait.NORMALIZES: normalizes,
    Trait.CONVERTS: converts,
    Trait.SQUARES: squares,
}
"""What computes whether a fact holds. LAYER, AVERAGES and NEEDS_FLOAT32 are judgements, of which nothing can be run."""


@pytest.mark.parametrize("trait", CHECKS, ids=lambda trait: trait.name)
def test_facts_hold_for_what_an_operator_computes(trait: Trait) -> None:
    targets = [target for target in TRIED if trait in TRAITS[target]]
    assert targets
    assert not [str(target) for target in targets if not CHECKS[trait](target, example(target))]


def test_what_moves_elements_is_bounded_and_linear_but_not_what_pads() -> None:
    for target, known in TRAITS.items():
        if Trait.MOVES in known and target is not operator.getitem:
            assert Trait.BOUNDED in known and Trait.LINEAR in known and Trait.PADS not in known


def test_operators_that_ask_for_strides_have_a_counterpart_that_computes_the_same() -> None:
    for target, strideless in STRIDELESS.items():
        assert torch.equal(target(X, [8, 36]), strideless(X, [8, 36]))


def test_finds_operators_by_their_name_in_a_program() -> None:
    assert overload("aten.mul.Tensor") is aten.mul.Tensor
    assert overload("linear") is None and overload("unet") is None
    assert has("aten.clone.default", Trait.POINTWISE) and has("aten.clone.default", Trait.MOVES)
    assert traits("unet") == traits("linear") == Trait.NONE
    assert not has(aten.silu.default, Trait.MOVES) and has(aten.silu.default, Trait.POINTWISE)
