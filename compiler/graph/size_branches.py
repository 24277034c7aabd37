"""Check a graph with open sizes at those sizes at which its module takes another branch than the graph has.

``torch.export`` follows one side of a branch such as ``if missing > 0``. Its graph holds for the other side as well
where it computes the same there, but for operators on tensors without elements: no appended rows change nothing. Nor
does a mask of attention that hides nothing, and a part that is written over whole has no values of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.utils._sympy.value_ranges import bound_sympy

from diffc.compiler.errors import CaptureError

aten = torch.ops.aten
SHAPED = (aten.slice.Tensor, aten.view.default, aten.reshape.default, aten.expand.default, aten.repeat.default)
"""Operators that return their first argument where the result has its shape."""

COPIES = (aten.clone.default, aten.alias.default, aten.contiguous.default)

Capture = Callable[[Sequence[torch.Tensor]], ExportedProgram]
"""Captures the module of a graph at fixed sizes."""


def need_every_branch(name: str, body: ExportedProgram, example: Sequence[torch.Tensor], capture: Capture) -> None:
    """Raise `CaptureError` where a graph computes something else than its module, which has branches on sizes.

    For each branch, the first and the last size at which the module takes its other side are compared.
    """
    ports = body.graph.find_nodes(op="placeholder")[-len(example) :]
    for symbol, size in _other_sides(body, ports):
        inputs = [_resized(tensor, port, symbol, size) for tensor, port in zip(example, ports, strict=True)]
        numbers = dict[str, int]()
        if _computation(body, inputs, numbers) != _computation(capture(inputs), inputs, numbers):
            what = f"{name} computes something else where a size that each request decides is {size}"
            fix = "compute the same for every number of tokens, without a branch on a size"
            raise CaptureError(what, where=f"the component {name}", fix=fix)


def _other_sides(body: ExportedProgram, ports: Sequence[fx.Node]) -> list[tuple[Any, int]]:
    """Return values of open sizes, each with its symbol, at which branches of the module take their other sides."""
    sizes: list[Any] = [size for p in ports for size in p.meta["val"].shape if isinstance(size, torch.SymInt)]
    sides = dict[tuple[Any, int], None]()
    for symbol in dict.fromkeys(symbol for size in sizes for symbol in size.node.expr.free_symbols):
        guards = dict.fromkeys(guard.expr for guard in sizes[0].node.shape_env.guards)
        span = body.range_constraints[symbol]
        for guard in (guard for guard in guards if guard.free_symbols == {symbol}):
            if not bound_sympy(guard, {symbol: span}).is_singleton():
                declared = range(int(span.lower), int(span.upper) + 1)
                differing = [size for size in declared if not guard.subs(symbol, size)]
                sides |= dict.fromkeys((symbol, size) for size in (*differing[:1], *differing[-1:]))
    return list(sides)


def _resized(tensor: torch.Tensor, port: fx.Node, symbol: Any, size: int) -> torch.Tensor:
    """Return zeros like a tensor of an example, where one size of the request is another."""
    shape = list(tensor.shape)
    for axis, declared in enumerate(port.meta["val"].shape):
        if isinstance(declared, torch.SymInt) and symbol in declared.node.expr.free_symbols:
            shape[axis] = int(declared.node.expr.subs(symbol, size))
    return torch.zeros(shape, dtype=tensor.dtype)


def _computation(body: ExportedProgram, inputs: Sequence[torch.Tensor], numbers: dict[str, int]) -> list[Any]:
    """Return numbers of a graph's results, equal for results of the same operators on the same values."""
    values, names, tensors = dict[fx.Node, Any](), dict[fx.Node, Any](), iter(inputs)
    constants = _Constants(body, values)
    sources = dict(zip(body.graph.find_nodes(op="placeholder"), body.graph_signature.input_specs, strict=True))
    output = body.graph.output_node()
    results: Any = output.args[0]
    with FakeTensorMode(allow_non_fake_inputs=True):
        for node in body.graph.nodes:
            if node in sources:
                spec = sources[node]
                like = next(tensors) if spec.kind is InputKind.USER_INPUT else node.meta["val"]
                values[node], name = torch.empty(tuple(like.shape), dtype=like.dtype), _source(body, spec, node.name)
            elif node is not output:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
                name = _name(node, values, names, constants)
            names[node] = name if _is_number(name) else f"%{numbers.setdefault(name, len(numbers))}"
    return [names[result] for result in results]


class _Constants:
    """Compute the results of a graph that neither an input nor a weight decides."""

    def __init__(self, body: ExportedProgram, values: Mapping[fx.Node, Any]) -> None:
        self.values, self.elements = values, dict[fx.Node, Any]()
        for node, spec in zip(body.graph.find_nodes(op="placeholder"), body.graph_signature.input_specs, strict=True):
            self.elements[node] = body.constants.get(spec.target or "")

    def are_true(self, mask: fx.Node) -> bool:
        """Return whether a mask is such a result, and hides nothing."""
        with unset_fake_temporarily():
            elements = self._of(mask)
            return elements is not None and elements.dtype == torch.bool and bool(elements.all())

    def _of(self, node: fx.Node) -> Any:
        """Return a result, or a size; None where an input or a weight decides it."""
        if not isinstance(self.values[node], torch.Tensor | list | tuple):
            return self.values[node]
        if node not in self.elements:
            operands = {operand: self._of(operand) for operand in node.all_input_nodes}
            if any(operand is None for operand in operands.values()):
                self.elements[node] = None
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), operands.__getitem__)
                self.elements[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self.elements[node]


def _is_number(name: Any) -> bool:
    return not isinstance(name, str) or name.startswith("%")


def _source(body: ExportedProgram, spec: InputSpec, name: str) -> str:
    """Name an input, a weight, or a constant by its elements."""
    constant = body.constants.get(spec.target or "")
    if isinstance(constant, torch.Tensor) and type(constant) is torch.Tensor:
        return f"{constant.dtype} {constant.tolist()}"
    return name if spec.kind is InputKind.USER_INPUT else f"weight {spec.target}"


def _name(node: fx.Node, values: dict[fx.Node, Any], names: dict[fx.Node, Any], constants: _Constants) -> Any:
    """Return the number of a result, the value of a size, or an operator with the names of its operands."""
    args = list[Any](node.args)
    if not isinstance(values[node], torch.Tensor | list | tuple):
        return values[node]
    if node.target is aten.cat.default:
        args[0] = [part for part in args[0] if values[part].numel()] or args[0]
        if len(args[0]) == 1:
            return names[args[0][0]]
    if node.target is aten.slice.Tensor:
        args = [argument or 0 for argument in args]
    if node.target is aten.slice_scatter.default and values[args[1]].shape == values[node].shape:
        return names[args[1]]
    if node.target is aten.scaled_dot_product_attention.default and len(args) == 4 and constants.are_true(args[3]):
        args = args[:3]
    if node.target in COPIES or (node.target in SHAPED and values[args[0]].shape == values[node].shape):
        return names[args[0]]
    named, options = fx.map_arg((tuple(args), node.kwargs), names.__getitem__)
    return f"{node.target} {named} {dict(options)}"
