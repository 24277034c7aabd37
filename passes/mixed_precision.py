"""Compute in 16 bits, and in 32 where 16 do not suffice.

Paper: Micikevicius et al., "Mixed Precision Training", ICLR 2018.
       https://arxiv.org/abs/1710.03740 (sections 3.1 and 3.3: storage in half precision, reductions in single)

Before (inside a graph):
    y = linear(x, w)
    z = y / sqrt(mean(y * y))

After (dtype=torch.float16):
    y = float(linear(half(x), half(w)))
    z = y / sqrt(mean(y * y))

where float16 does not hold the squares, and a weight that is not read elsewhere is stored as half(w).

Ports keep their types. Conversions of the model itself are dropped, but for those to float64.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from diffc.compiler.analysis.float32_nodes import FLOATS, INFINITE, arguments, is_double, representable, sensitive
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.export import export
from diffc.compiler.graph.symbolic import ports_like
from diffc.compiler.ir.program import Graph

aten = torch.ops.aten


def mixed_precision(graph: Graph, *, dtype: torch.dtype, wide: Collection[str] = ()) -> Graph:
    """Compute in ``dtype``, but in float32 nodes named in ``wide``, readers of weights named there, and sensitive ones.

    Nodes are named as in `diffc.compiler.graph.body.body_of`. A graph that computes with integers alone, or in
    float64, is left as it is.
    """
    typed = _Typed(body_of(graph), dtype, frozenset(wide))
    if not typed.computes:
        return graph
    return replace(graph, body=export(graph.name, typed, ports_like(graph.inputs, graph)))


class _Typed(nn.Module):
    """Run a captured graph in other types; the export of this module is the rewritten graph."""

    def __init__(self, body: fx.GraphModule, dtype: torch.dtype, wide: frozenset[str]) -> None:
        super().__init__()
        self.body, self.dtype = body, dtype
        held = {node: _attribute(body, node) for node in body.graph.find_nodes(op="get_attr")}
        beyond = {node for node, tensor in held.items() if node.name in wide or _is_beyond(tensor, dtype)}
        self.wide = wide | sensitive(body, dtype) | {user.name for node in beyond for user in node.users}
        self.constants = dict[str, str]()
        for node, tensor in held.items():
            if node not in beyond and _changes(tensor, dtype):
                self.constants[node.name] = f"constant_{len(self.constants)}"
                self.register_buffer(self.constants[node.name], representable(tensor, dtype).to(dtype))

        self.arguments = {node.name: arguments(node, self.type_of(node)) for node in body.graph.nodes}

    def type_of(self, node: fx.Node) -> torch.dtype:
        """Return the type in which a node computes."""
        return torch.float32 if node.name in self.wide else self.dtype

    @property
    def computes(self) -> bool:
        """Return whether any node computes in another type."""
        values = [node.meta.get("val") for node in self.body.graph.nodes if node.op == "call_function"]
        return any(isinstance(value, torch.Tensor) and value.dtype in FLOATS for value in pytree.tree_leaves(values))

    def forward(self, *ports: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute in the new types."""
        outputs: tuple[torch.Tensor, ...] = _Computing(self).run(*ports)
        return outputs


def _attribute(body: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    tensor: torch.Tensor = operator.attrgetter(str(node.target))(body)
    return tensor


def _largest(tensor: torch.Tensor) -> float:
    """Return the largest magnitude of a constant floating-point tensor; weights are not read."""
    if isinstance(tensor, FakeTensor) or tensor.dtype not in FLOATS or not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return max(-float(low), float(high))


def _is_beyond(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor has finite values outside of a type's range."""
    if _largest(tensor) <= torch.finfo(dtype).max:
        return False
    size = tensor.abs()
    return bool(((size > torch.finfo(dtype).max) & (size < INFINITE)).any())


def _changes(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor, converted, would become infinite, or a single value zero."""
    largest = _largest(tensor)
    vanishes = tensor.numel() == 1 and largest > 0 and not torch.tensor(largest).to(dtype)
    return largest > torch.finfo(dtype).max or bool(vanishes)


class _Computing(fx.Interpreter):
    """Run a graph; each value is cast to the types of its readers, once for each type."""

    def __init__(self, typed: _Typed) -> None:
        super().__init__(typed.body)
        self.typed = typed
        self.casts = dict[tuple[int, torch.dtype | None], tuple[torch.Tensor, torch.Tensor]]()

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node in its type."""
        if n.op == "get_attr" and n.name in self.typed.constants:
            return self.typed.get_buffer(self.typed.constants[n.name])
        if n.op in ("placeholder", "get_attr"):
            return super().run_node(n)
        if n.op == "output" or is_double(n):
            return self._call(n, self._as_it_was(n.args), self._as_it_was(n.kwargs))
        if _only_converts(n):
            return self.env[n.all_input_nodes[0]]
        dtype = self.typed.type_of(n)
        kwargs = {**_said(n), **n.kwargs}
        return self._call(n, self._in(self.typed.arguments[n.name], dtype), self._in(kwargs, dtype))

    def _call(self, n: fx.Node, args: Any, kwargs: Any) -> Any:
        target: Any = n.target
        if n.op == "output":
            return args[0]
        order = _order(n)
        return aten.permute.default(args[1][0], order) if order else target(*args, **kwargs)

    def _as_it_was(self, arguments: Any) -> Any:
        """Return the values of nodes in their own types."""
        return fx.map_arg(arguments, lambda node: self._cast(self.env[node], _type(node)))

    def _in(self, arguments: Any, dtype: torch.dtype) -> Any:
        """Return the values of nodes in a type; an argument that names a type is replaced by it."""
        cast = fx.map_arg(arguments, lambda node: self._cast(self.env[node], dtype))
        return pytree.tree_map_only(torch.dtype, lambda named: dtype if named in FLOATS else named, cast)

    def _cast(self, value: Any, dtype: torch.dtype | None) -> Any:
        """Convert a floating-point tensor; other values, and lists of tensors, stay as they are."""
        if not isinstance(value, torch.Tensor) or value.dtype not in FLOATS or value.dtype == dtype:
            return value
        key = id(value), dtype
        if key not in self.casts:
            self.casts[key] = value, aten._to_copy.default(value, dtype=dtype)
        return self.casts[key][1]


def _type(node: fx.Node) -> torch.dtype | None:
    value = node.meta["val"]
    return value.dtype if isinstance(value, torch.Tensor) else None


def _order(node: fx.Node) -> list[int]:
    """Return the permutation of an einsum of one tensor: ONNX has no einsum of bfloat16."""
    if node.target is not aten.einsum.default:
        return []
    axes, _, order = str(node.args[0]).replace(" ", "").partition("->")
    return [axes.index(axis) for axis in order] if sorted(axes) == sorted(order) else []


def _only_converts(node: fx.Node) -> bool:
    """Return whether a node converts floating-point values to another type."""
    if node.target is not aten._to_copy.default:
        return False
    return all(each.meta["val"].dtype in FLOATS for each in (node, node.all_input_nodes[0]))


def _said(node: fx.Node) -> dict[str, torch.dtype]:
    """Return the ``dtype`` argument of a node that creates a tensor."""
    target, value = node.target, node.meta.get("val")
    if node.all_input_nodes or not isinstance(target, torch._ops.OpOverload) or not isinstance(value, torch.Tensor):
        return {}
    takes = any(argument.name == "dtype" for argument in target._schema.arguments)
    return {"dtype": value.dtype} if takes and value.dtype in FLOATS else {}
