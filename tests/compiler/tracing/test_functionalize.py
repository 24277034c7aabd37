"""A write into a view changes its base as PyTorch does, whatever way led to the view."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffc.compiler import capture
from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.tracing.functionalize import Link
from diffc.compiler.tracing.recorder import Recorder
from diffc.compiler.tracing.request_inputs import Image
from diffc.compiler.tracing.symbolic_tensor import Symbolic
from tests.random_programs import difference, numbers

aten = torch.ops.aten

LINKS = {
    "reshape": Link(aten.view.default, ([6, 4],), {}),
    "transpose": Link(aten.transpose.int, (0, 2), {}),
    "permute": Link(aten.permute.default, ([2, 0, 1],), {}),
    "select": Link(aten.select.int, (1, 2), {}),
    "slice": Link(aten.slice.Tensor, (2, 1, 3), {}),
    "split": Link(aten.split.Tensor, (2, 2), {}, 1),
}


Write = Callable[[torch.Tensor], object]
IN_PLACE: dict[str, Write] = {
    "unsqueeze_": lambda x: x.unsqueeze_(0),
    "squeeze_": lambda x: x.squeeze_(),
    "squeeze_ of a dimension": lambda x: x.squeeze_(1),
    "transpose_": lambda x: x.transpose_(0, 2),
    "swapaxes_": lambda x: x.swapaxes_(0, 2),
    "t_": lambda x: x.squeeze_(1).t_(),
    "resize_": lambda x: x.resize_(4, 3),
    "resize_ to fewer": lambda x: x.resize_(2, 5),
    "resize_as_": lambda x: x.resize_as_(torch.zeros(2, 6)),
    "detach_": lambda x: x.detach_(),
    "pow_ of a tensor": lambda x: x.pow_(torch.full((3, 1, 4), 2.0)),
    "mul_ of another type": lambda x: x.mul_(torch.ones((3, 1, 4), dtype=torch.float64)),
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


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_in_place_operator_changes_a_tensor_and_its_views_as_torch_does(name: str) -> None:
    def sample() -> tuple[torch.Tensor, ...]:
        x = torch.randn(3, 1, 4)
        row = x[1]
        IN_PLACE[name](x)
        x.add_(1)
        row.mul_(3)
        return x * x.shape[0], x.sum(-1), row + 0

    program = capture(sample, {})
    torch.manual_seed(0)
    expected = list(sample())
    torch.manual_seed(0)
    assert difference(numbers(program, [torch.randn(3, 1, 4)]), expected) == 0


def test_a_loop_that_adds_dimensions_in_place_ends() -> None:
    def sample() -> torch.Tensor:
        x = torch.randn(3)
        while x.dim() < 3:
            x.unsqueeze_(-1)
        return x * torch.ones(3, 4, 5)

    assert capture(sample, {}).ops[-1].results[0].type.shape == (3, 4, 5)


def replaces_data(x: torch.Tensor) -> None:
    """Give a tensor the memory of another, which no dispatcher sees."""
    x.data = torch.zeros(3)


REFUSED: dict[str, tuple[Write, str]] = {
    "more elements": (lambda x: x.resize_(5, 5), "with elements that it does not have"),
    "another order": (lambda x: x.transpose_(0, 2).resize_(3, 4), "with elements that it does not have"),
    "other memory": (lambda x: x.set_(torch.zeros(3)), "aten.set_.source_Tensor writes in place"),
    "other data": (replaces_data, "data is replaced"),
    "strides in place": (lambda x: x.as_strided_((2,), (3,)), "as_strided_.default writes in place"),
    "strides": (lambda x: x.transpose(0, 2).as_strided((2,), (3,)), "how a tensor lies in memory"),
    "an output": (lambda x: torch.add(x, 1, out=x), "aten.add.out writes in place"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_memory_is_refused_by_name(name: str) -> None:
    def sample() -> torch.Tensor:
        x = torch.randn(3, 1, 4)
        REFUSED[name][0](x)
        return x * 2

    with pytest.raises(CaptureError, match=REFUSED[name][1]):
        capture(sample, {})


def test_a_range_does_not_outlive_a_write() -> None:
    recorder = Recorder(FAKES)
    image = recorder.array("image", Image((1, 3, 2, 2)))
    with recorder:
        row = image[0]
        assert not isinstance(image < 0, Symbolic) and not isinstance(row < 0, Symbolic)
        image.mul_(2).sub_(1)
        assert isinstance(image < 0, Symbolic) and isinstance(row < 0, Symbolic)
