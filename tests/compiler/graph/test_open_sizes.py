"""Compute open sizes from tensors, and export with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.body import example_inputs
from diffc.compiler.graph.export import export
from diffc.compiler.graph.open_sizes import (
    check_ends,
    dynamic_sizes,
    evaluated,
    lengths_in,
    lengths_of,
    marker,
    markers,
    number,
    sizes_stay_open,
)
from diffc.compiler.ir.program import Length, Size, Type, Value

L0, L1 = Size.of("L0"), Size.of("L1")
PORTS = [Value("x", Type("float32", (1, 2 * L0 + 4))), Value("y", Type("float32", (L0 + L1,)))]


def test_sizes_decide_lengths() -> None:
    lengths = lengths_of(PORTS, [torch.zeros(1, 14), torch.zeros(9)])
    assert lengths == {"L0": 5}
    assert lengths_in(port.type for port in PORTS) == {"L0"}
    assert (evaluated(3 * L0 - 1, lengths), evaluated(7, lengths), evaluated(L0, {"L0": torch.tensor(4)})) == (14, 7, 4)


def test_a_marker_is_no_end_of_a_range() -> None:
    assert [marker(length) for length in (Length("L0", 1, 31), Length("L0", 3, 3))] == [13, 3]


def test_a_graph_is_exported_at_sizes_that_differ_when_they_are_rounded_as_well() -> None:
    assert markers([Length("S0", 12, 512)]) == {"S0": 511}
    assert markers([Length("S0", 12, 40), Length("S1", 12, 40)]) == {"S0": 26, "S1": 39}
    assert markers([Length("S0", 1, 1), Length("S1", 0, 2)]) == {"S0": 1, "S1": 2}
    assert number(torch.tensor(3), Length("L0", 1, 4)) == 3


class Positions(nn.Module):
    """Number the rows of a tensor, and fix their number, as much code does."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        """Add its number to each row."""
        [x] = tensors
        count = int(x.shape[1])
        assert isinstance(count, int) and len(x[0]) == count and len([x, x]) == 2
        return (x + torch.arange(count),)


def test_a_graph_keeps_its_sizes_open() -> None:
    ports = [Value("x", Type("float32", (1, L0)))]
    module = Positions()
    with sizes_stay_open(module):
        sizes = dynamic_sizes([port.type for port in ports], [Length("L0", 1, 20)])
        body = export("positions", module, example_inputs(ports, {"L0": 6}), sizes=sizes).module(check_guards=False)
    for count in (1, 6, 20):
        assert torch.equal(body(torch.zeros(1, count))[0], torch.arange(count)[None].float())
    assert not {"int", "len"} & vars(__import__(__name__, fromlist=["x"])).keys()


class Alone(nn.Module):
    """Compute something else for a single column, which an export of open sizes does not see."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Multiply a single column, and list the columns of more than half a unit."""
        [x] = tensors
        return x * self.factor if x.shape[1] == 1 else x, x > 0.5


def test_a_captured_graph_is_compared_with_its_module_at_the_ends_of_its_sizes() -> None:
    ports, ends = [Value("x", Type("float32", (3, L0)))], [{"L0": 1}, {"L0": 20}]
    sizes = dynamic_sizes([port.type for port in ports], [Length("L0", 1, 20)])
    for factor in (1.0, 2.0):
        module = Alone(factor)
        captured = export("alone", module, example_inputs(ports, {"L0": 6}), sizes=sizes).module(check_guards=False)
        if factor == 1.0:
            check_ends("alone", module, captured, ports, ends)
            continue
        with pytest.raises(CaptureError, match="alone computes something else with open sizes than at L0 = 1"):
            check_ends("alone", module, captured, ports, ends)
        check_ends("alone", module, captured, ports, ends[1:])


class Written(nn.Module):
    """Compute with the digits of a size."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        """Multiply by their number."""
        [x] = tensors
        return (x * len(f"{x.shape[1]}"),)


def test_the_text_of_an_open_size_is_refused() -> None:
    module, sizes = Written(), dynamic_sizes([Type("float32", (1, L0))], [Length("L0", 1, 20)])
    with sizes_stay_open(module), pytest.raises(CaptureError, match="the text of a size that each request decides"):
        export("written", module, [torch.zeros(1, 6)], sizes=sizes)
    assert torch.SymInt.__str__ is object.__str__
