"""Keep in-place writes and views apart: a program has values only, so a write makes a new value of the whole tensor.

A tensor that has views, and each view, remembers a base, which only they hold, and its path from there. Writing into a
view scatters the new part back along that path; a view whose base has changed since is recorded anew before it is read.
An operator that changes a tensor's shape in place makes it a view of its former self. This is what
``torch.func.functionalize`` does, for tensors without elements:
https://docs.pytorch.org/docs/stable/generated/torch.func.functionalize.html
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.aten import Trait, has

aten = torch.ops.aten

RESIZES = (aten.resize_.default, aten.resize_as_.default)
"""In-place operators that keep as many of the first elements as a new shape holds."""

MEMORY = ("aten::set_", "aten::as_strided_")
"""In-place operators whose results depend on how tensors lie in memory, of which a program knows nothing."""

Record = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Record an operator that returns new tensors, and return them."""


@dataclass(frozen=True)
class Link:
    """Take one view: an operator, its arguments after the tensor, and which of several results."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    index: int | None = None

    def take(self, base: Any, record: Record) -> Any:
        """Take the view of another tensor."""
        taken = record(self.func, (base, *self.args), self.kwargs)
        return taken if self.index is None else taken[self.index]

    def scatter(self, base: Any, part: Any, record: Record) -> Any:
        """Return the base with this view replaced. Raises `CaptureError` where the view cannot be scattered."""
        if has(self.func, Trait.RESHAPES):
            return part if part.shape == base.shape else record(aten.view.default, (part, list(base.shape)), {})
        if self.func in (aten.transpose.int, aten.t.default):
            return record(aten.transpose.int, (part, *(self.args or (0, 1))), {})
        if self.func is aten.permute.default:
            inverse = torch.tensor(self.args[0]).argsort().tolist()
            return record(aten.permute.default, (part, inverse), {})
        if self.func is aten.select.int:
            return record(aten.select_scatter.default, (base, part, *self.args), {})
        if self.func is aten.slice.Tensor:
            return record(aten.slice_scatter.default, (base, part, *self.args), {})
        if self.func is aten.split.Tensor and self.index is not None:
            size, axis = self.args[0], self.args[1] if len(self.args) > 1 else 0
            start = self.index * size
            return record(aten.slice_scatter.default, (base, part, axis, start, start + part.shape[axis]), {})
        raise CaptureError(f"a write into the result of {self.func}", fix="write into the tensor itself")


@dataclass
class View:
    """Remember where a view comes from and which version of it was seen."""

    base: Any
    path: tuple[Link, ...]
    version: int


@cache
def functional(func: Any) -> Any:
    """Return the operator that computes what an in-place one writes; None where there is none.

    >>> functional(aten.transpose_.default)
    <OpOverload(op='aten.transpose', overload='int')>
    """
    namespace, _, name = func._schema.name.partition("::")
    if namespace != "aten" or not name.endswith("_") or func._schema.name in MEMORY:
        return None
    types = [str(argument.type) for argument in func._schema.arguments]
    packet = getattr(aten, name.removesuffix("_"), None)
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet else []
    pure = [overload for overload in overloads if not overload._schema.is_mutable]
    return next((o for o in pure if [str(argument.type) for argument in o._schema.arguments] == types), None)


def link(view: Any, source: Any, step: Link) -> None:
    """Record that a tensor was made as a view of another."""
    if source.alias is None:
        base = type(source)(source.fake, source.label)
        base.bounds, base.known, base.tokens = source.bounds, source.known, source.tokens
        source.alias = View(base, (), 0)
    view.alias = View(source.alias.base, (*source.alias.path, step), source.alias.base.version)


def refresh(tensor: Any, record: Record) -> None:
    """Take a view again if its base was written since."""
    view = tensor.alias
    if view is None or view.version == view.base.version:
        return
    value = view.base
    for step in view.path:
        value = step.take(value, record)
    _assign(tensor, value)
    view.version = view.base.version


def write(target: Any, new: Any, record: Record) -> None:
    """Replace the values of a tensor and of all views that share its memory."""
    if target.alias is None:
        _assign(target, new)
        return
    refresh(target, record)
    base, path = target.alias.base, target.alias.path
    views = [base]
    for step in path[:-1]:
        views.append(step.take(views[-1], record))
    part = new
    for step, before in zip(reversed(path), reversed(views[: len(path)]), strict=True):
        part = step.scatter(before, part, record)
    _assign(base, part)
    base.version += 1
    _assign(target, new)
    target.alias.version = base.version


def _assign(target: Any, new: Any) -> None:
    """Make the elements of a tensor those of another."""
    target.label, target.bounds, target.known, target.tokens = new.label, new.bounds, new.known, new.tokens


def become(target: Any, view: Any) -> None:
    """Make a tensor the view of itself that an operator, such as ``unsqueeze_``, turns it into; its shape stays."""
    _assign(target, view)
    target.fake, target.alias = view.fake, view.alias


def resized(tensor: Any, shape: Any, record: Record) -> Any:
    """Return the view of a tensor that resizing it in place leaves. Raises `CaptureError` where no values are known."""
    size = math.prod(shape)
    if size > tensor.numel() or not tensor.is_contiguous():
        what = f"{list(tensor.shape)} is resized to {list(shape)}, with elements that it does not have in this order"
        raise CaptureError(what, fix="use reshape, or write into a new tensor")
    first = record(aten.slice.Tensor, (record(aten.view.default, (tensor, [-1]), {}), 0, 0, size), {})
    return record(aten.view.default, (first, list(shape)), {})
