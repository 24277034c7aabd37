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
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec

from diffc.compiler.errors import CaptureError

aten = torch.ops.aten
SHAPED = (aten.slice.Tensor, aten.view.default, aten.reshape.default, aten.expand.default, aten.repeat.default)
"""Operators that return their first argument where the result has its shape."""

MOST_SIDES = 32
"""A module that is captured at more values of its sizes than these is refused."""

COPIES = (aten.clone.default, aten.alias.default, aten.contiguous.default)

Capture = Callable[[Sequence[torch.Tensor]], ExportedProgram]
"""Captures the module of a graph at the sizes of an example, of which those that are open may be fixed."""


def need_every_branch(name: str, body: ExportedProgram, example: Sequence[torch.Tensor], capture: Capture) -> None:
    """Raise `CaptureError` where a graph computes something else than its module, which has branches on sizes.

    Values of a size for which all branches go the same ways are one class. The module is captured again at the first
    and the last value of each class; branches that it meets there divide the classes further.
    """
    ports = body.graph.find_nodes(op="placeholder")[-len(example) :]
    guards, compared = _guards(ports), set[tuple[str, int]]()
    while sides := _sides(body, ports, example, guards) - compared:
        symbol, size = min(sides)
        compared.add((symbol, size))
        inputs = [_resized(tensor, port, symbol, size) for tensor, port in zip(example, ports, strict=True)]
        captured, numbers = capture(inputs), dict[str, int]()
        is_same = len(compared) <= MOST_SIDES
        if not is_same or _computation(body, inputs, numbers) != _computation(captured, inputs, numbers):
            what = f"{name} computes something else where a size that each request decides is {size}"
            fix = "compute the same for every number of tokens, without a branch on a size"
            raise CaptureError(what, where=f"the component {name}", fix=fix)
        guards |= _guards(captured.graph.find_nodes(op="placeholder")[-len(example) :])


def _guards(ports: Sequence[fx.Node]) -> dict[str, Any]:
    """Return the conditions on one open size each for which a graph holds, by their texts."""
    modes = (tensor.fake_mode for port in ports if isinstance(tensor := port.meta["val"], FakeTensor))
    guards = (guard.expr for mode in modes if mode.shape_env is not None for guard in mode.shape_env.guards)
    return {str(guard): guard for guard in guards if len(guard.free_symbols) == 1}


def _sides(
    body: ExportedProgram, ports: Sequence[fx.Node], example: Sequence[torch.Tensor], guards: Mapping[str, Any]
) -> set[tuple[str, int]]:
    """Return open sizes, each with its symbol: the first and the last of each class but for that of the example."""
    sides = set[tuple[str, int]]()
    for symbol, size in _examples(ports, example).items():
        own = [guard for guard in guards.values() if {s.name for s in guard.free_symbols} == {symbol}]
        span = next(span for name, span in body.range_constraints.items() if str(name) == symbol)
        classes = dict[tuple[bool, ...], list[int]]()
        for value in range(int(span.lower), int(span.upper) + 1) if own else ():
            outcomes = tuple(bool(guard.subs(dict.fromkeys(guard.free_symbols, value))) for guard in own)
            classes.setdefault(outcomes, []).append(value)
        sides |= {(symbol, n) for values in classes.values() if size not in values for n in (values[0], values[-1])}
    return sides


def _examples(ports: Sequence[fx.Node], example: Sequence[torch.Tensor]) -> dict[str, int]:
    """Return the open sizes of an example by their symbols; 0 for those of which no axis has just the size."""
    pairs = ((p.meta["val"].shape, tensor.shape) for p, tensor in zip(ports, example, strict=True))
    sizes = [pair for shapes in pairs for pair in zip(*shapes, strict=True) if isinstance(pair[0], torch.SymInt)]
    unknown = {symbol.name: 0 for size, _ in sizes for symbol in size.node.expr.free_symbols}
    return unknown | {str(size.node.expr): int(value) for size, value in sizes if size.node.expr.is_symbol}


def _resized(tensor: torch.Tensor, port: fx.Node, symbol: str, size: int) -> torch.Tensor:
    """Return zeros like a tensor of an example, where one size of the request is another."""
    shape = list(tensor.shape)
    for axis, declared in enumerate(port.meta["val"].shape):
        symbols = declared.node.expr.free_symbols if isinstance(declared, torch.SymInt) else set()
        if symbol in {free.name for free in symbols}:
            shape[axis] = int(declared.node.expr.subs(dict.fromkeys(symbols, size)))
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
