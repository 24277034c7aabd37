"""Read the open sizes of captured graphs: integers of ``torch.export`` that stand for sizes of a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, compute_unbacked_bindings

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


def mode_of(tensors: Iterable[torch.Tensor], graph: fx.Graph) -> FakeTensorMode:
    """Return the mode of tensors with open sizes, or that of lazy weights where all sizes of a graph are fixed."""
    modes: list[Any] = [tensor for tensor in tensors if is_open(tensor)]
    fallback = counting_mode() if counts(graph) else FAKES
    return modes[0].fake_mode if modes else fallback


def counting_mode() -> FakeTensorMode:
    """Return a mode of its own for a graph in which values decide sizes."""
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=_symbols(), static_shapes=True)


@contextmanager
def counted_sizes(mode: FakeTensorMode) -> Iterator[None]:
    """Run operators whose values decide sizes on fake tensors in this block: such a size is an integer with bounds."""
    before = mode.shape_env
    mode.shape_env = before or _symbols()
    try:
        with enable_python_dispatcher():
            yield
    finally:
        mode.shape_env = before


def _symbols() -> ShapeEnv:
    return ShapeEnv(allow_scalar_outputs=False)


def counted(result: Any, symbols: ShapeEnv | None) -> dict[str, Any]:
    """Return the metadata of a node that names the sizes which its values decide."""
    bindings = compute_unbacked_bindings(symbols, result)
    return {"unbacked_bindings": bindings} if bindings else {}


def counts(graph: fx.Graph) -> bool:
    """Return whether values decide sizes in a graph, as those of a mask decide how many elements it selects."""
    tags = (node.target.tags for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    return any(torch.Tag.dynamic_output_shape in tag for tag in tags)


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
