"""Find the operators of a captured graph whose results are wrong in 16 bits, by their structure.

- A sine, an exponential, a logarithm or a running sum of a rounded value is noise. They compute in float32, as
  do their operands that come from integers and constants: timesteps, positions.
- The square of a half-precision value may exceed half precision: a root mean square that is written out, as the norm
  of a layer is in many models, computes in float32 from the square to the quotient. Norms of one operator do so inside.
- Literals beyond float16's range that stand for no infinity stay float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from diffc.compiler.graph.aten import Trait, has

aten = torch.ops.aten

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""The types that a graph may compute in."""

INFINITE = 1e8
"""Larger literals stand for infinity, as they do in masks."""


def sensitive(body: fx.GraphModule, dtype: torch.dtype) -> frozenset[str]:
    """Name the nodes that compute in float32 where others do in ``dtype``."""
    nodes, features = set[fx.Node](), set[fx.Node]()
    for node in body.graph.nodes:
        if has(node.target, Trait.LAYER) or not features.isdisjoint(node.all_input_nodes):
            features.add(node)
    for node in body.graph.nodes:
        if _is_exact(node) or _holds_large(node, dtype):
            nodes |= {node, *_leading_to(node, features)}
        if _is_root(node):
            nodes.update(_root_mean_square(node))
    return frozenset(node.name for node in nodes if node.op == "call_function")


def _is_exact(node: fx.Node) -> bool:
    if node.target in (aten.pow.Tensor_Tensor, aten.pow.Scalar):
        return True
    is_other = _is_of(node, lambda dtype: dtype.is_complex or dtype == torch.float64)
    return has(node.target, Trait.NEEDS_FLOAT32) or is_other or _becomes_integers(node)


def _becomes_integers(node: fx.Node) -> bool:
    """Return whether values are truncated to integers, where a small error becomes an error of one."""
    sources = node.all_input_nodes
    return (
        node.target is aten._to_copy.default
        and not _floats(node)
        and any(_floats(source) for source in sources)
        and node.meta["val"].dtype != torch.bool
    )


def _floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in FLOATS


def _is_of(node: fx.Node, condition: Any) -> bool:
    """Return whether an operand or a result of a node has a type that meets a condition."""
    values = pytree.tree_leaves([each.meta.get("val") for each in (node, *node.all_input_nodes)])
    return any(isinstance(value, torch.Tensor) and condition(value.dtype) for value in values)


def is_double(node: fx.Node) -> bool:
    """Return whether a node computes in float64, which it keeps."""
    return _is_of(node, lambda dtype: dtype == torch.float64)


def _holds_large(node: fx.Node, dtype: torch.dtype) -> bool:
    """Return whether a node has a literal that is too large for a type."""
    return any(is_too_large(node.args[at], dtype) for at in _numbers(node))


def is_too_large(number: Any, dtype: torch.dtype) -> bool:
    """Return whether a finite value is outside of a type's range."""
    return bool(torch.finfo(dtype).max < abs(number) < INFINITE)


def _numbers(node: fx.Node) -> list[int]:
    """List the arguments that are operands, and not options, such as a norm's epsilon."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    kinds = [str(argument.type) for argument in node.target._schema.arguments]
    return [at for at, value in enumerate(node.args) if isinstance(value, float) and "float" not in kinds[at]]


def arguments(node: fx.Node, dtype: torch.dtype) -> tuple[Any, ...]:
    """Return a node's arguments, with literals clamped to a type's range."""
    args = list(node.args)
    for at in _numbers(node):
        args[at] = representable(torch.tensor(args[at], dtype=torch.float64), dtype).item()
    return tuple(args)


def representable(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return values of a type: finite ones stay finite, nonzero ones nonzero.

    The smallest is the smallest normal number, over which one can be divided.
    """
    limits = torch.finfo(dtype)
    inside = torch.where(numbers.isinf(), numbers, numbers.clamp(-limits.max, limits.max))
    vanishes = (numbers != 0) & (inside.to(dtype) == 0)
    return torch.where(vanishes, numbers.sign() * limits.smallest_normal, inside)


def _leading_to(node: fx.Node, features: set[fx.Node]) -> Iterator[fx.Node]:
    """Yield the nodes that a node is computed from, back to the ports, and none before a feature."""
    seen, pending = set[fx.Node](), list(node.all_input_nodes)
    while pending:
        source = pending.pop()
        if source not in seen and source not in features:
            seen.add(source)
            pending += source.all_input_nodes
            yield source


def _is_root(node: fx.Node) -> bool:
    power = node.args[1] if node.target is aten.pow.Tensor_Scalar else None
    return node.target in (aten.rsqrt.default, aten.sqrt.default) or (isinstance(power, float) and abs(power) == 0.5)


def _root_mean_square(root: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes of a root mean square, from the squares to the quotient; none for another root."""
    chain = [root]
    while True:
        source = next(iter(chain[-1].all_input_nodes), None)
        if source is None:
            return
        chain.append(source)
        if _is_square(source):
            break
        if not has(source.target, Trait.AVERAGES):
            return
    yield from chain
    yield from (user for user in root.users if user.target in (aten.mul.Tensor, aten.div.Tensor))


def _is_square(node: fx.Node) -> bool:
    if node.target is aten.pow.Tensor_Scalar:
        return bool(node.args[1] == 2)
    return has(node.target, Trait.SQUARES) or (node.target is aten.mul.Tensor and node.args[0] is node.args[1])
