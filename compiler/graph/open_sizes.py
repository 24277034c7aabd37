"""Compute the open sizes of a graph from the tensors of a call: while it runs, and while it is exported."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.body import example_inputs
from diffc.compiler.ir.program import Length, Size, Type, Value

RELATIVE = 1e-4
"""How far a captured graph may be off in float32, since its operators are decomposed: more is another computation."""


def lengths_of(ports: Sequence[Value], tensors: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Return the lengths that the sizes of tensors decide."""
    lengths = dict[str, Any]()
    for port, tensor in zip(ports, tensors, strict=True):
        for axis, size in enumerate(port.type.shape):
            if isinstance(size, Size) and len(size.factors) == 1 and size.lengths[0] not in lengths:
                [(name, factor)] = size.factors
                lengths[name] = (tensor.shape[axis] - size.constant) // factor
    return lengths


def number(tensor: torch.Tensor, length: Length) -> Any:
    """Return a length that a tensor holds, within its bounds."""
    value = tensor.item()
    torch._check(value >= length.least)  # type: ignore[no-untyped-call]
    torch._check(value <= length.most)  # type: ignore[no-untyped-call]
    return value


def lengths_in(types: Iterable[Type]) -> set[str]:
    """Return the names of the lengths that the sizes of tensors of these types decide."""
    sizes = (size for type_ in types for size in type_.shape)
    return {size.lengths[0] for size in sizes if isinstance(size, Size) and len(size.factors) == 1}


def marker(length: Length) -> int:
    """Return a value of a length to export a graph at: neither end of its range, if it has others."""
    return min(length.most, length.least + 2 + (length.most - length.least) // 3)


def markers(lengths: Sequence[Length]) -> dict[str, int]:
    """Return values of lengths to export a graph at, far from one another: sizes rounded up from them differ, too.

    A graph that pads several sequences to the longest masks the others then, which holds for equal ones as well.
    """
    values = dict[str, int]()
    for at, length in enumerate(lengths, start=1):
        value = length.least + 1 + (length.most - length.least - 2) * at // len(lengths)
        values[length.name] = max(length.least, min(max(value, 2), length.most))
    return values


def check_ends(
    name: str, module: nn.Module, captured: nn.Module, ports: Sequence[Value], ends: Iterable[Mapping[str, int]]
) -> None:
    """Compute with a module and the graph that was captured of it, at the least and the most of its sizes.

    Floating-point ports have normal values; ``ends`` are the lengths, by name, and the values of ports that take them.
    Raises `CaptureError` with the lengths at which the results differ.
    """
    generator = torch.Generator().manual_seed(0)
    for lengths in ends:
        inputs = example_inputs(ports, lengths)
        inputs = [x.normal_(generator=generator) if x.is_floating_point() else x for x in inputs]
        pairs = zip(module(*inputs), captured(*inputs), strict=True)
        if not all(_is_close(one, two) for one, two in pairs):
            sizes = ", ".join(f"{length} = {count}" for length, count in lengths.items())
            what = f"{name} computes something else with open sizes than at {sizes}"
            raise CaptureError(what, fix="compute the same for every number of tokens, without a branch on a size")


def _is_close(one: torch.Tensor, two: torch.Tensor) -> bool:
    if (one.shape, one.dtype) != (two.shape, two.dtype) or not one.is_floating_point():
        return torch.equal(one, two)
    return torch.allclose(one, two, rtol=RELATIVE, atol=RELATIVE, equal_nan=True)


def evaluated(size: Any, lengths: Mapping[str, Any]) -> Any:
    """Return the value of a size, which may be an integer of a graph that is being exported."""
    if not isinstance(size, Size):
        return size
    numbers = {name: int(n) if isinstance(n := lengths[name], torch.Tensor) else n for name in size.lengths}
    return size.constant + sum(factor * numbers[name] for name, factor in size.factors)


def dynamic_sizes(types: Iterable[Type], lengths: Iterable[Length]) -> list[dict[int, Any] | None]:
    """Return the open axes of tensors, with their bounds, as ``torch.export`` takes them; None where there are none."""
    bounds = {length.name: (length.least, length.most) for length in lengths}
    return [
        {axis: _dimension(size, bounds) for axis, size in enumerate(type_.shape) if isinstance(size, Size)} or None
        for type_ in types
    ]


def _dimension(size: Size, bounds: Mapping[str, tuple[int, int]]) -> Any:
    least, most = size.bounds(bounds)
    return Dim.DYNAMIC(min=least, max=most)


class _Integers(type):
    """Convert to integers, but for sizes of a graph that is being exported: they are integers already."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and isinstance(args[0], torch.SymInt) else int(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, int | torch.SymInt)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, int)


class _Integer(metaclass=_Integers):
    """Stand for ``int`` in the modules of a component's code."""


def _length(sized: Any) -> Any:
    """Stand for ``len`` in the modules of a component's code: that of a tensor may be an open size."""
    return sized.shape[0] if isinstance(sized, torch.Tensor) else len(sized)


OPEN_BUILTINS = {"int": _Integer, "len": _length}
"""What stands for functions of Python that would fix a size."""


@contextmanager
def _unwritten(names: Collection[str]) -> Iterator[None]:
    """Refuse that the code of modules writes an open size as a text: it would write a symbol."""
    methods = {name: getattr(torch.SymInt, name) for name in ("__str__", "__repr__")}

    def refusing(method: Any) -> Any:
        def write(self: torch.SymInt) -> Any:
            if sys._getframe(1).f_globals.get("__name__") in names:
                what = f"the text of a size that each request decides, {method(self)}, is read"
                raise CaptureError(what, fix="compute with the size itself")
            return method(self)

        return write

    for name, method in methods.items():
        setattr(torch.SymInt, name, refusing(method))
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(torch.SymInt, name, method)


@contextmanager
def sizes_stay_open(component: nn.Module) -> Iterator[None]:
    """Keep ``int(size)`` and ``len(tensor)`` in the code of a component from fixing the size in this block.

    Raises `CaptureError` where the code writes a size as a text.
    """
    names = {type(layer).__module__ for layer in component.modules()}
    modules = [vars(sys.modules[name]) for name in names if name in sys.modules]
    replaced = [(module, OPEN_BUILTINS.keys() - module.keys()) for module in modules]
    for module, builtins in replaced:
        module.update({name: OPEN_BUILTINS[name] for name in builtins})
    try:
        with _unwritten(names):
            yield
    finally:
        for module, builtins in replaced:
            for name in builtins:
                del module[name]
