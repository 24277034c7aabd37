"""A write into a view changes its base as PyTorch does, whatever way led to the view."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.functionalize import Link

aten = torch.ops.aten

LINKS = {
    "reshape": Link(aten.view.default, ([6, 4],), {}),
    "transpose": Link(aten.transpose.int, (0, 2), {}),
    "permute": Link(aten.permute.default, ([2, 0, 1],), {}),
    "select": Link(aten.select.int, (1, 2), {}),
    "slice": Link(aten.slice.Tensor, (2, 1, 3), {}),
    "split": Link(aten.split.Tensor, (2, 2), {}, 1),
}


def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply an operator to real tensors."""
    return func(*args, **kwargs)


@pytest.mark.parametrize("name", LINKS)
def test_a_scattered_view_is_what_writing_into_it_leaves(name: str) -> None:
    step, base = LINKS[name], torch.arange(24.0).reshape(2, 3, 4)
    written = base.clone()
    view = step.take(written, run)
    part = -view.clone()
    view.copy_(part)  # PyTorch's own view writes through
    scattered = step.scatter(base, part, run)
    assert torch.equal(scattered, written) and not torch.equal(written, base)


def test_a_view_that_cannot_be_scattered_is_refused_by_name() -> None:
    step = Link(aten.diagonal.default, (), {})
    with pytest.raises(CaptureError, match="diagonal"):
        step.scatter(SimpleNamespace(shape=(2, 2)), None, run)
