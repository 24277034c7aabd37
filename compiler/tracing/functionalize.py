"""Keep in-place writes and views apart: a program has values only, so a write makes a new value of the whole tensor.

A view remembers its base and the way to it. Writing into a view scatters the new part back along that way; a view whose
base has changed since is taken anew before it is read. This is what ``torch.func.functionalize`` does, for tensors that
have no numbers: https://docs.pytorch.org/docs/stable/generated/torch.func.functionalize.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.aten import Trait, has

aten = torch.ops.aten

Record = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Record an operator that returns new tensors, and give them."""


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


def link(view: Any, source: Any, step: Link) -> None:
    """Note that a tensor was made as a view of another."""
    base = source.alias.base if source.alias else source
    path = (*(source.alias.path if source.alias else ()), step)
    view.alias = View(base, path, base.version)


def refresh(tensor: Any, record: Record) -> None:
    """Take a view again if its base was written since."""
    view = tensor.alias
    if view is None or view.version == view.base.version:
        return
    value = view.base
    for step in view.path:
        value = step.take(value, record)
    tensor.label, view.version = value.label, view.base.version


def write(target: Any, new: Any, record: Record) -> None:
    """Replace the values of a tensor and of all views that share its memory."""
    view = target.alias
    if view is None:
        target.label = new.label
        target.version += 1
        return
    refresh(target, record)
    wholes = [view.base]
    for step in view.path[:-1]:
        wholes.append(step.take(wholes[-1], record))
    part = new
    for step, base in zip(reversed(view.path), reversed(wholes), strict=True):
        part = step.scatter(base, part, record)
    view.base.label = part.label
    view.base.version += 1
    target.label, view.version = new.label, view.base.version
