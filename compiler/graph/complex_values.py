"""Represent complex numbers in a captured graph by two real values each: no program, engine or port has them.

Before:
    z = aten.view_as_complex.default(x)
    y = aten.view_as_real.default(aten.mul.Tensor(z, freqs))

After:
    re = aten.select.int(x, -1, 0)
    im = aten.select.int(x, -1, 1)
    y = aten.stack.default([re * freqs_re - im * freqs_im, re * freqs_im + im * freqs_re], -1)

What moves or adds elements does so in either part; a real operand has an imaginary part of zeros. An operator without
a rule, such as a Fourier transform, stays, and alone has complex operands and results.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from diffc.compiler.graph.aten import Trait, has

aten = torch.ops.aten

PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}
"""The type of the parts of a complex type."""

MOVED = (aten.index.Tensor, aten.index_select.default, aten.gather.default)
"""Operators, beside those of `Trait.MOVES`, that move elements by places that other operands hold."""


EITHER = Trait.MOVES | Trait.RESHAPES | Trait.CONVERTS | Trait.LINEAR | Trait.VIEW
"""What an operator does to the real part, and in the same manner to the imaginary one."""


class Pair(tuple[Any, Any]):
    """Hold the real and the imaginary part of a value, or of each of several."""


def separate_complex(body: ExportedProgram) -> None:
    """Replace every complex value of a graph, constants too, by its real and its imaginary part.

    Raises `TypeError` where the graph itself takes or returns complex numbers.
    """
    separation = _Separation(body)
    for node in list(body.graph.nodes):
        involved = _is_complex(node) or any(operand in separation.pairs for operand in node.all_input_nodes)
        if not involved:
            continue
        if node.op == "output":
            raise TypeError("it returns complex numbers")
        with body.graph.inserting_before(node.next if node.op == "placeholder" else node):
            result = separation.constant(node) if node.op == "placeholder" else separation.operator(node)
        if isinstance(result, Pair):
            separation.pairs[node] = result
        else:
            node.replace_all_uses_with(result)


def _is_complex(node: fx.Node) -> bool:
    values = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(value, Tensor) and value.is_complex() for value in values)


class _Separation:
    """Insert operators on real values into a graph, and remember the two parts of each complex value."""

    def __init__(self, body: ExportedProgram) -> None:
        self.body, self.pairs = body, dict[fx.Node, Pair]()

    @cached_property
    def mode(self) -> FakeTensorMode:
        """Return the mode of the graph's values."""
        values = pytree.tree_leaves([node.meta.get("val") for node in self.body.graph.nodes])
        mode: FakeTensorMode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
        return mode

    def constant(self, node: fx.Node) -> Pair:
        """Make the two parts of a constant the last dimension of a real one."""
        target = next(spec.target for spec in self.body.graph_signature.input_specs if spec.arg.name == node.name)
        if target is None:
            raise TypeError("it takes complex numbers")
        for tensors in (self.body.constants, self.body.state_dict):
            if target in tensors:
                tensors[target] = torch.view_as_real(tensors[target].detach())
        node.meta = {**node.meta, "val": torch.view_as_real(node.meta["val"])}
        return self.unpack(node)

    def operator(self, node: fx.Node) -> Pair | fx.Node:
        """Insert what an operator on complex values stands for."""
        args, kwargs = _mapped(self._operand, fx.Node | complex | torch.dtype, (node.args, node.kwargs))
        if node.target in RULES:
            result: Pair | fx.Node = RULES[node.target](self.op, *args, **kwargs)
            return result
        if node.target in MOVED or node.target is operator.getitem or has(node.target, EITHER):
            real = self.op(node.target, *_mapped(operator.itemgetter(0), Pair, args), **kwargs)
            if not _is_complex(node):  # a conversion to real values
                return real
            zeros = (lambda leaf: leaf) if node.target in MOVED else self._zeros
            imaginary = _mapped(lambda leaf: leaf[1] if isinstance(leaf, Pair) else zeros(leaf), Pair | fx.Node, args)
            return Pair((real, self.op(node.target, *imaginary, **kwargs)))
        args, kwargs = _mapped(lambda pair: self.op(aten.complex.default, *pair), Pair, (args, kwargs))
        stays = self.op(node.target, *args, **kwargs)
        if _is_complex(stays):
            return self.unpack(self.op(aten.view_as_real.default, stays))
        return Pair((stays, self._zeros(stays))) if _is_complex(node) else stays

    def _zeros(self, real: fx.Node) -> fx.Node:
        """Return the imaginary part of a real tensor; a size stays."""
        is_tensor = isinstance(real.meta["val"], Tensor)
        return self.op(aten.zeros_like.default, real) if is_tensor else real

    def _operand(self, leaf: Any) -> Any:
        if isinstance(leaf, complex):
            return Pair((leaf.real, leaf.imag))
        return self.pairs.get(leaf, leaf) if isinstance(leaf, fx.Node) else PARTS.get(leaf, leaf)

    def op(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert an operator, with the type of its result."""
        node: fx.Node = self.body.graph.call_function(target, args, kwargs)
        values = _mapped(lambda operand: operand.meta["val"], fx.Node, (args, kwargs))
        with self.mode:
            node.meta["val"] = target(*values[0], **values[1])
        return node

    def unpack(self, node: fx.Node) -> Pair:
        """Return the parts that are the last dimension of a value."""
        return Pair(self.op(aten.select.int, node, -1, at) for at in (0, 1))


def _mapped(function: Callable[[Any], Any], kind: Any, structure: Any) -> Any:
    """Apply a function to what is of a kind in nested lists and tuples of arguments."""
    if isinstance(structure, kind):
        return function(structure)
    if isinstance(structure, dict):
        return {key: _mapped(function, kind, item) for key, item in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(_mapped(function, kind, item) for item in structure)
    return structure


Op = Callable[..., Any]
"""Insert an operator; arguments are its own."""


def _product(op: Op, a: Any, b: Any) -> Pair:
    if not isinstance(a, Pair) or not isinstance(b, Pair):
        pair, factor = (a, b) if isinstance(a, Pair) else (b, a)
        return Pair((_times(op, pair[0], factor), _times(op, pair[1], factor)))
    real = op(aten.sub.Tensor, _times(op, a[0], b[0]), _times(op, a[1], b[1]))
    return Pair((real, op(aten.add.Tensor, _times(op, a[0], b[1]), _times(op, a[1], b[0]))))


def _times(op: Op, a: Any, b: Any) -> Any:
    return op(aten.mul.Tensor, a, b) if isinstance(a, fx.Node) else op(aten.mul.Tensor, b, a)


def _quotient(op: Op, a: Any, b: Any) -> Pair:
    if not isinstance(b, Pair):
        return Pair((op(aten.div.Tensor, a[0], b), op(aten.div.Tensor, a[1], b)))
    size = op(aten.add.Tensor, op(aten.square.default, b[0]), op(aten.square.default, b[1]))
    real, imaginary = _product(op, a, _conjugate(op, b))
    return Pair((op(aten.div.Tensor, real, size), op(aten.div.Tensor, imaginary, size)))


def _sum(target: Any) -> Callable[..., Pair]:
    """Return the rule of an addition, in which a real operand has no imaginary part."""

    def rule(op: Op, a: Any, b: Any, *, alpha: Any = 1) -> Pair:
        real, imaginary = ([x[at] if isinstance(x, Pair) else x if at == 0 else 0.0 for x in (a, b)] for at in (0, 1))
        if not isinstance(a, Pair):  # its imaginary part is a zero of both shapes
            real[0] = _times(op, op(aten.ones_like.default, b[0]), real[0])
            imaginary[0] = op(aten.zeros_like.default, real[0])
        elif isinstance(b, fx.Node):
            imaginary[1] = op(aten.zeros_like.default, b)
        return Pair((op(target, *real, alpha=alpha), op(target, *imaginary, alpha=alpha)))

    return rule


def _polar(op: Op, size: fx.Node, angle: fx.Node) -> Pair:
    turn = (op(aten.cos.default, angle), op(aten.sin.default, angle))
    return Pair((op(aten.mul.Tensor, size, turn[0]), op(aten.mul.Tensor, size, turn[1])))


def _size(op: Op, z: Pair) -> fx.Node:
    size: fx.Node = op(aten.hypot.default, *z)
    return size


def _conjugate(op: Op, z: Pair) -> Pair:
    return Pair((z[0], op(aten.neg.default, z[1])))


RULES: Mapping[Any, Callable[..., Any]] = {
    aten.view_as_complex.default: lambda op, x: Pair(op(aten.select.int, x, -1, at) for at in (0, 1)),
    aten.view_as_real.default: lambda op, z: op(aten.stack.default, list(z), -1),
    aten.complex.default: lambda _, real, imaginary: Pair((real, imaginary)),
    aten.polar.default: _polar,
    aten.exp.default: lambda op, z: _polar(op, op(aten.exp.default, z[0]), z[1]),
    aten.real.default: lambda _, z: z[0],
    aten.imag.default: lambda _, z: z[1],
    aten.abs.default: _size,
    aten.angle.default: lambda op, z: op(aten.atan2.default, z[1], z[0]),
    **dict.fromkeys((aten._conj.default, aten.conj.default, aten.conj_physical.default), _conjugate),
    **dict.fromkeys((aten.resolve_conj.default, aten._assert_tensor_metadata.default), lambda _, z, *a, **b: z),
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), _product),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), _quotient),
    aten.reciprocal.default: lambda op, z: _quotient(op, 1.0, z),
    **{target: _sum(target) for target in (aten.add.Tensor, aten.sub.Tensor)},
}
"""Operators on complex numbers as those on their parts."""
