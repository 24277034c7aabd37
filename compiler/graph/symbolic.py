"""Read the open sizes of captured graphs: integers of ``torch.export`` that stand for sizes of a request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffc.compiler.graph.body import body_of, example_inputs
from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.ir.program import Graph, Value

TYPICAL = 64
"""The number that stands for a size that nothing bounds, where work is estimated."""


def is_open(value: object) -> bool:
    """Return whether a value of a captured graph is a tensor with an open size."""
    return isinstance(value, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape)


def typical(size: Any) -> int:
    """Return the integer that a size had when its graph was exported."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    node: Any = size.node
    return int(node.shape_env.optimization_hint(node.expr, fallback=TYPICAL))


def elements(tensor: torch.Tensor) -> int:
    """Count the elements of a tensor, at the sizes at which its graph was exported."""
    count = 1
    for size in tensor.shape:
        count *= typical(size)
    return count


def ports_like(ports: Sequence[Value], graph: Graph) -> list[torch.Tensor]:
    """Return zeros for an export; for open ports of a graph the tensors without values with which it was captured."""
    if not any(port.type.lengths for port in ports):
        return example_inputs(ports)
    placeholders = body_of(graph).graph.find_nodes(op="placeholder")
    captured = {port.name: node.meta["val"] for port, node in zip(graph.inputs, placeholders, strict=True)}
    return [captured[port.name] if port.type.lengths else example_inputs([port])[0] for port in ports]


def mode_of(tensors: Iterable[torch.Tensor]) -> FakeTensorMode:
    """Return the mode of tensors with open sizes, or that of lazy weights where all sizes are fixed."""
    modes: list[Any] = [tensor for tensor in tensors if is_open(tensor)]
    return modes[0].fake_mode if modes else FAKES


def dynamic_axes(tensors: Iterable[torch.Tensor]) -> list[dict[int, Any] | None]:
    """Return the open axes of tensors with their bounds, as ``torch.export`` takes them."""
    return [
        {axis: _dimension(size) for axis, size in enumerate(sizes) if isinstance(size, torch.SymInt)} or None
        for sizes in ([*tensor.shape] for tensor in tensors)
    ]


def _dimension(size: Any) -> Any:
    node = size.node
    bounds = node.shape_env.bound_sympy(node.expr)
    return torch.export.Dim.DYNAMIC(min=int(bounds.lower), max=int(bounds.upper))


def concrete(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Replace tensors with open sizes by zeros of the sizes at which their graph was exported."""
    return [
        torch.zeros([typical(size) for size in tensor.shape], dtype=tensor.dtype) if is_open(tensor) else tensor
        for tensor in tensors
    ]


def ranges(tensors: Iterable[torch.Tensor]) -> dict[Any, Any]:
    """Return the ranges of all symbols in the sizes of tensors."""
    sizes: list[Any] = [size for tensor in tensors for size in tensor.shape if isinstance(size, torch.SymInt)]
    return {symbol: s.node.shape_env.bound_sympy(symbol) for s in sizes for symbol in s.node.expr.free_symbols}
