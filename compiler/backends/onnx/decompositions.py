"""Replace operators that PyTorch's exporter lacks, or translates wrongly, by operators that it knows.

Before:
    y = aten.cdist.default(a, b)

After:
    d = aten.sub.Tensor(aten.unsqueeze.default(a, -2), aten.unsqueeze.default(b, -3))
    y = aten.linalg_vector_norm.default(d, 2.0, [-1])

Each function below computes an operator as PyTorch does; one that returns ``NotImplemented`` for some arguments leaves
the operator as it is. One that decides by an open size is refused: its operators are those of one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten

BY_PRODUCT = 25
"""PyTorch computes Euclidean distances of more points than this as a product of matrices."""

SHORT = (torch.int8, torch.int16, torch.int32)
"""Signed integers of less than 64 bits."""


def decompose(graph: fx.Graph) -> None:
    """Replace the operators of a graph that have a decomposition; results keep their types and shapes.

    Raises `ValueError` for an operator that cannot be decomposed exactly.
    """
    for node in list(graph.nodes):
        if node.target in DECOMPOSITIONS:
            _replace(graph, node, DECOMPOSITIONS[node.target])


def _replace(graph: fx.Graph, node: fx.Node, function: Callable[..., Any]) -> None:
    leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
    operands = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    left = list[bool]()

    def call(*tensors: Tensor) -> list[Tensor]:
        values = iter(tensors)
        args, kwargs = pytree.tree_unflatten([next(values) if isinstance(x, fx.Node) else x for x in leaves], structure)
        results = function(*args, **kwargs)
        left.append(results is NotImplemented)
        return [] if results is NotImplemented else pytree.tree_leaves(results)

    types = [operand.meta["val"] for operand in operands]
    mode = types[0].fake_mode
    decided = 0 if mode.shape_env is None else len(mode.shape_env.guards)
    with mode:
        traced = make_fx(call)(*types)
    if left[-1]:
        return
    if mode.shape_env is not None and len(mode.shape_env.guards) > decided:
        raise ValueError(f"the decomposition of {node.target} depends on a size that each request decides")
    inputs = dict(zip(traced.graph.find_nodes(op="placeholder"), operands, strict=True))
    with graph.inserting_before(node):
        results: Any = graph.graph_copy(traced.graph, inputs)
    if isinstance(node.meta["val"], torch.Tensor):
        node.replace_all_uses_with(results[0])
    else:
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **options: Any) -> Any:
    """Attend in four dimensions, which is how many ONNX's attention has."""
    if q.dim() == 4:
        return NotImplemented
    batch = q.shape[:-2]
    four = [x.expand(*batch, *x.shape[-2:]).reshape(1, -1, *x.shape[-2:]) for x in (q, k, v)]
    mask = attn_mask
    if mask is not None and mask.dim() > 2:
        mask = mask.expand(*batch, *mask.shape[-2:]).reshape(1, -1, *mask.shape[-2:])
    y = aten.scaled_dot_product_attention.default(*four, mask, *args, **options)
    return y.reshape(*batch, *y.shape[-2:])


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float, _: bool
) -> Any:
    if training or mean is None:
        return NotImplemented
    column = (-1, *(1 for _ in x.shape[2:]))
    factor = (variance + eps).rsqrt() * (1 if weight is None else weight)
    y = (x - mean.reshape(column)) * factor.reshape(column)
    return y if bias is None else y + bias.reshape(column)


def _conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **options: Any) -> Any:
    """Add zeros: ONNX Runtime's convolution of volumes reads a bias where there is none."""
    if bias is not None:
        return NotImplemented
    return aten.conv3d.default(x, weight, torch.zeros(len(weight), dtype=x.dtype), *args, **options)


def _scan(x: Tensor, dim: int, combine: Callable[[Any, Any], Any], index: Tensor | None = None) -> Any:
    """Combine each element with all before it, in a logarithmic number of steps."""
    state: Any = (x,) if index is None else (x, index)
    size, step = x.shape[dim], 1
    while step < size:
        later = [part.narrow(dim, step, size - step) for part in state]
        earlier = [part.narrow(dim, 0, size - step) for part in state]
        combined = combine(earlier, later)
        state = [torch.cat([part.narrow(dim, 0, step), new], dim) for part, new in zip(state, combined, strict=True)]
        step *= 2
    return state


def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    x = x if x.is_floating_point() else x.long()
    x = x if dtype is None else x.to(dtype)
    product: Tensor = _scan(x, dim, lambda one, two: [one[0] * two[0]])[0] if x.dim() else x
    return product


def _extremes(is_later: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, int], Any]:
    def extremes(x: Tensor, dim: int) -> Any:
        places = (
            torch.arange(x.shape[dim]).reshape(-1, *(1 for _ in range(x.dim() - 1 - dim % x.dim()))).expand(x.shape)
        )

        def combine(earlier: Any, later: Any) -> Any:
            replaces = is_later(later[0], earlier[0])
            return [torch.where(replaces, two, one) for one, two in zip(earlier, later, strict=True)]

        return _scan(x, dim, combine, places)

    return extremes


def _median(x: Tensor) -> Tensor:
    return x.flatten().sort().values[(x.numel() - 1) // 2]


def _median_dim(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    return _kth(x, (x.shape[dim] + 1) // 2, dim, keepdim)


def _kth(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """Return the k-th smallest values and their places, which are one of several where values are equal."""
    parts = [part.narrow(dim, k - 1, 1) for part in x.sort(dim=dim)]
    return parts if keepdim else [part.squeeze(dim) for part in parts]


def _search(
    boundaries: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Count the boundaries that lie before each value."""
    boundaries = boundaries if sorter is None else boundaries.gather(-1, sorter)
    is_before = torch.le if right or side == "right" else torch.lt
    counts = is_before(boundaries.unsqueeze(-2), values.unsqueeze(-1)).sum(-1)
    return counts.int() if out_int32 else counts


def _distances(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Any:
    by_product = p == 2 and compute_mode != 2 and (max(a.shape[-2], b.shape[-2]) > BY_PRODUCT or compute_mode == 1)
    if not by_product:
        return aten.linalg_vector_norm.default(a.unsqueeze(-2) - b.unsqueeze(-3), p, [-1])
    one, two = (x.square().sum(-1, keepdim=True) for x in (a, b))
    return (one + two.mT - 2 * (a @ b.mT)).clamp_min(0).sqrt()


def _aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    dims = list(range(x.dim())) if dim is None else [dim]
    return x.amin(dims, keepdim), x.amax(dims, keepdim)


def _adaptive_pool3d(x: Tensor, size: list[int]) -> Tensor:
    """Average along one axis after the other, by a product with the weights of each window."""
    for axis, count in zip((-3, -2, -1), size, strict=True):
        length = x.shape[axis]
        window, place = torch.arange(count).unsqueeze(-1), torch.arange(length)
        start, end = window * length // count, ((window + 1) * length + count - 1) // count
        weights = ((place >= start) & (place < end)).to(x.dtype) / (end - start).to(x.dtype)
        x = (x.movedim(axis, -1) @ weights.mT).movedim(-1, axis)
    return x


def _avg_pool2d(
    x: Tensor,
    window: list[int],
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    if divisor_override is None:
        return NotImplemented
    if ceil_mode:
        raise ValueError("aten.avg_pool2d.default has both ceil_mode and divisor_override")
    factor = math.prod(window if len(window) == 2 else window * 2) / divisor_override
    return aten.avg_pool2d.default(x, window, stride, padding, ceil_mode, True) * factor


def _nearest_exact(x: Tensor, size: list[int], *scales: float | None) -> Tensor:
    """Take the value whose centre is nearest, along one axis after the other."""
    for axis, (count, scale) in enumerate(zip(size, scales or [None] * len(size), strict=True), start=2):
        length = x.shape[axis]
        stride = 1 / scale if scale else length / count
        places = ((torch.arange(count) + 0.5) * stride).floor().long().clamp(max=length - 1)
        x = x.index_select(axis, places)
    return x


def _nearest_exact_of(x: Tensor, size: list[int] | None, factors: list[float] | None) -> Tensor:
    """Do the same by a size or by factors."""
    if factors is None:
        return _nearest_exact(x, size or [])
    return _nearest_exact(x, [int(n * factor) for n, factor in zip(x.shape[2:], factors, strict=True)], *factors)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Return the kernel of Keys with a = -0.5, as Pillow and filtered sampling in PyTorch have it."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _filter(kernel: Callable[[Tensor], Tensor], support: float, count: int, length: int, stride: float) -> Tensor:
    """Return the weights [count, length] of values in filtered samples that are ``stride`` values apart."""
    width = max(stride, 1.0)
    centres = ((torch.arange(count) + 0.5) * stride).unsqueeze(1)
    places = torch.arange(length)
    first, last = (torch.floor(centres + side * support * width + 0.5) for side in (-1, 1))
    weights = kernel(((places - centres + 0.5) / width).abs())
    weights = torch.where((places >= first) & (places < last), weights, 0.0)
    return weights / weights.sum(1, keepdim=True)


def _filtered(kernel: Callable[[Tensor], Tensor], support: float) -> Callable[..., Any]:
    """Return a function that samples two axes by products with weights.

    ONNX puts aligned corners elsewhere: PyTorch samples from half a stride on with them, too.
    """

    def sampled(x: Tensor, size: list[int], align_corners: bool, *scales: float | None) -> Any:
        for axis, (count, scale) in enumerate(zip(size, scales or [None] * len(size), strict=True), start=2):
            length = x.shape[axis]
            if align_corners:
                stride = (length - 1) / (count - 1) if count > 1 else 0.0
            else:
                stride = 1 / scale if scale else length / count
            weights = _filter(kernel, support, count, length, stride).to(x.dtype)
            x = weights @ x if axis == 2 else x @ weights.t()
        return x

    return sampled


def _filtered_of(filtered: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does the same by a size or by factors."""

    def sampled(x: Tensor, size: list[int] | None, align_corners: bool, factors: list[float] | None) -> Any:
        if factors is None:
            return filtered(x, size, align_corners)
        sizes = [int(n * factor) for n, factor in zip(x.shape[2:], factors, strict=True)]
        return filtered(x, sizes, align_corners, *factors)

    return sampled


def _index(x: Tensor, indices: list[Tensor | None]) -> Any:
    """Index with numbers of 64 bits, the only ones that ONNX indexes several axes with."""
    if not any(index is not None and index.dtype in SHORT for index in indices):
        return NotImplemented
    wide = [index.long() if index is not None and index.dtype in SHORT else index for index in indices]
    return aten.index.Tensor(x, wide)


def _qr(a: Tensor, mode: str = "reduced") -> Any:
    """Reflect one column after the other, with the signs of LAPACK."""
    if mode != "reduced":
        return NotImplemented
    (rows, columns), r = a.shape[-2:], a
    rank, reflections = min(rows, columns), list[tuple[Tensor, Tensor]]()
    for at in range(min(rows - 1, columns)):
        _, column = aten.split_with_sizes.default(r.select(-1, at), [at, rows - at], -1)
        first, rest = aten.split_with_sizes.default(column, [1, rows - at - 1], -1)
        squares = rest.square().sum(-1, keepdim=True)
        length = (first.square() + squares).sqrt()
        target = torch.where(squares > 0, torch.where(first >= 0, -length, length), first)
        factor = torch.where(squares > 0, (target - first) / target, 0.0)
        tail = rest / torch.where(squares > 0, first - target, 1.0)
        reflections.append((torch.cat([torch.ones_like(first), tail], -1), factor))
        r = _reflected(r, *reflections[-1])
    q = torch.eye(rows, rank, dtype=a.dtype).expand(*a.shape[:-1], rank)
    for reflection in reversed(reflections):
        q = _reflected(q, *reflection)
    return q, r.narrow(-2, 0, rank).triu()


def _reflected(matrix: Tensor, vector: Tensor, factor: Tensor) -> Tensor:
    """Reflect the last rows of a matrix, as many as the vector has elements."""
    count = vector.shape[-1]
    before, part = aten.split_with_sizes.default(matrix, [matrix.shape[-2] - count, count], -2)
    part = part - (factor * vector).unsqueeze(-1) * (vector.unsqueeze(-2) @ part)
    return torch.cat([before, part], -2)


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    return (a.square() + b.square()).sqrt()


_BILINEAR, _BICUBIC = _filtered(_triangle, 1.0), _filtered(_cubic, 2.0)

DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    aten.scaled_dot_product_attention.default: _attention,
    aten.batch_norm.default: _batch_norm,
    aten.conv3d.default: _conv3d,
    aten.cumprod.default: _cumprod,
    aten.cummax.default: _extremes(torch.ge),
    aten.cummin.default: _extremes(torch.le),
    aten.median.default: _median,
    aten.median.dim: _median_dim,
    aten.kthvalue.default: _kth,
    aten.searchsorted.Tensor: _search,
    aten.cdist.default: _distances,
    aten.aminmax.default: _aminmax,
    aten.adaptive_avg_pool3d.default: _adaptive_pool3d,
    aten.avg_pool2d.default: _avg_pool2d,
    aten._upsample_bilinear2d_aa.default: _BILINEAR,
    aten._upsample_bilinear2d_aa.vec: _filtered_of(_BILINEAR),
    aten._upsample_bicubic2d_aa.default: _BICUBIC,
    aten._upsample_bicubic2d_aa.vec: _filtered_of(_BICUBIC),
    aten._upsample_nearest_exact3d.default: _nearest_exact,
    aten._upsample_nearest_exact3d.vec: _nearest_exact_of,
    aten.linalg_qr.default: _qr,
    aten.hypot.default: _hypot,
    aten.index.Tensor: _index,
}
"""Functions that compute operators with others, by overload."""
