"""A constant that a symbolic value is written into is symbolic from then on, and so are all views of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler import capture
from diffc.compiler.errors import CaptureError
from tests.random_programs import difference, numbers

INDEX = torch.tensor([[0, 2, 1], [1, 0, 2]])

WRITES: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "copy_": lambda buffer, x: buffer[:2].copy_(x),
    "an index": lambda buffer, x: buffer.__setitem__(1, x[0]),
    "a slice": lambda buffer, x: buffer.__setitem__((slice(None, 2), slice(1, 3)), x[:, :2]),
    "a slice of a slice": lambda buffer, x: buffer[1:][:2].mul_(x),
    "a part of a split": lambda buffer, x: buffer.split(2)[0].add_(x),
    "scatter_": lambda buffer, x: buffer.scatter_(0, INDEX, x),
    "scatter_add_": lambda buffer, x: buffer.scatter_add_(0, INDEX, x),
    "index_put_": lambda buffer, x: buffer.index_put_((torch.tensor([2, 0]),), x),
    "index_copy_": lambda buffer, x: buffer.index_copy_(0, torch.tensor([2, 0]), x),
    "masked_fill_": lambda buffer, x: buffer.masked_fill_(torch.eye(3, dtype=torch.bool), x.sum()),
    "a transposed view": lambda buffer, x: buffer.t()[:, :2].add_(x.t()),
    "fill_": lambda buffer, x: buffer[0].fill_(x.mean()),
    "an item": lambda buffer, x: buffer.__setitem__((2, 1), x[0, 0]),
    "two writes": lambda buffer, x: (buffer[0].add_(x[0]), buffer.mul_(2), buffer[1:].sub_(x)),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_into_a_constant_is_seen_wherever_its_memory_is_read(name: str) -> None:
    def sample() -> tuple[torch.Tensor, ...]:
        x = torch.randn(2, 3)
        buffer = torch.arange(9.0).reshape(3, 3).clone()
        before, row = buffer + 1, buffer[1]
        WRITES[name](buffer, x)
        buffer[2, 2] = 7.0
        return x + 0, buffer + 0, row * 2, buffer.unsqueeze(0) + 0, before, torch.stack([buffer, buffer])

    program = capture(sample, {})
    torch.manual_seed(0)
    expected = list(sample())
    torch.manual_seed(0)
    assert difference(numbers(program, [torch.randn(2, 3)]), expected) == 0


def test_a_scalar_and_integers_are_written_too() -> None:
    def sample() -> tuple[torch.Tensor, ...]:
        x = torch.randn(2, 3)
        total, signs = torch.tensor(1.5), torch.zeros(2, 3, dtype=torch.int64)
        total += x.sum()
        signs[x > 0] = 1
        return total, signs.float()

    program = capture(sample, {})
    torch.manual_seed(0)
    expected = list(sample())
    torch.manual_seed(0)
    assert difference(numbers(program, [torch.randn(2, 3)]), expected) <= 1e-6


def test_a_component_is_called_with_what_was_written() -> None:
    net = nn.Linear(3, 3)

    def sample() -> Any:
        buffer = torch.zeros(2, 3)
        buffer[0] = torch.randn(3)
        return net(buffer)

    program = capture(sample, {"net": net})
    assert "net(input=v" in str(program)


def test_a_constant_that_is_returned_is_an_output() -> None:
    def sample() -> tuple[torch.Tensor, ...]:
        return torch.randn(2, 3), torch.arange(3.0), torch.tensor(2)

    program = capture(sample, {})
    first, *constants = numbers(program, [x := torch.randn(2, 3)])
    assert torch.equal(first, x) and [constant.tolist() for constant in constants] == [[0.0, 1.0, 2.0], 2]


@pytest.mark.parametrize("start", [0, 1])
def test_a_write_into_an_array_of_numpy_is_refused_where_another_tensor_reads_it(start: int) -> None:
    def sample() -> torch.Tensor:
        array = np.zeros(4, dtype=np.float32)
        torch.from_numpy(array)[:] = torch.randn(4)
        return torch.from_numpy(array[start:]) + 1

    with pytest.raises(CaptureError, match="shares its memory"):
        capture(sample, {})


def test_a_write_into_a_weight_and_into_unknown_memory_is_refused() -> None:
    weight, outside = nn.Parameter(torch.zeros(3), requires_grad=False), torch.zeros(3)
    view = outside.view(3)
    with pytest.raises(CaptureError, match="into a weight"):
        capture(lambda: weight.copy_(torch.randn(3)), {})
    with pytest.raises(CaptureError, match="shares its memory"):
        capture(lambda: outside.copy_(torch.randn(3)) + view, {})


SHARED: dict[str, Callable[[], tuple[torch.Tensor, Any]]] = {
    "from_numpy": lambda: (torch.from_numpy(array := np.zeros(4, np.float32)), array),
    "as_tensor": lambda: (torch.as_tensor(array := np.zeros(4, np.float32))[1:], array),
    "asarray": lambda: (torch.asarray(array := np.zeros(4, np.float32)), array),
    "frombuffer": lambda: (torch.frombuffer(array := bytearray(16), dtype=torch.float32), np.frombuffer(array)),
    "numpy": lambda: ((tensor := torch.zeros(4)), tensor.numpy()),
    "asarray of a tensor": lambda: ((tensor := torch.zeros(4)), np.asarray(tensor[1:])),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_write_into_memory_that_numpy_reads_is_refused(name: str) -> None:
    def sample() -> torch.Tensor:
        tensor, array = SHARED[name]()
        tensor[:] = torch.randn(tensor.shape)
        return torch.tensor(array.sum()) + tensor

    with pytest.raises(CaptureError, match="shares its memory with an array"):
        capture(sample, {})


def test_memory_that_another_library_shares_is_refused() -> None:
    def sample() -> torch.Tensor:
        tensor = torch.zeros(4)
        array = np.from_dlpack(tensor)
        tensor[:] = torch.randn(4)
        return torch.tensor(array.sum()) + tensor

    with pytest.raises(CaptureError, match="the memory of a tensor is shared with another library"):
        capture(sample, {})


READS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "numpy": lambda buffer: torch.from_numpy(buffer.data.numpy() * 2),
    "a deep copy": copy.deepcopy,
}


@pytest.mark.parametrize("name", READS)
def test_what_is_read_without_an_operator_is_what_was_written(name: str) -> None:
    def sample() -> torch.Tensor:
        buffer = torch.zeros(2, 3)
        buffer[:] = torch.randn(2, 3)
        read = READS[name](buffer)
        buffer += 1
        return read * 2 + buffer

    program = capture(sample, {})
    torch.manual_seed(0)
    expected = sample()
    torch.manual_seed(0)
    assert difference(numbers(program, [torch.randn(2, 3)]), [expected]) <= 1e-6


def test_a_copy_of_what_was_written_that_shares_its_memory_is_refused() -> None:
    def sample() -> torch.Tensor:
        buffer = torch.zeros(4)
        buffer[:] = torch.randn(4)
        return copy.copy(buffer) * 2

    with pytest.raises(CaptureError, match="a symbolic value is pickled"):
        capture(sample, {})
