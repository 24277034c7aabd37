"""A component is run once for each way in which it is called; what it returns keeps its structure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Type
from diffc.compiler.tracing.component_calls import ComponentCalls, returned_tensors, with_tensors


class Counted(nn.Module):
    """Count the runs of its forward."""

    runs = 0

    def forward(self, x: torch.Tensor, flip: bool = False) -> torch.Tensor:
        """Add one, or take one away."""
        self.runs += 1
        return x - 1 if flip else x + 1


def call(calls: ComponentCalls, net: nn.Module, *args: Any, **kwargs: Any) -> str:
    """Call a component, and return the name of the graph."""
    return calls.call("net", net, "forward", args, kwargs)[0].name


def test_calls_alike_share_a_graph_however_they_are_written() -> None:
    calls, net, x = ComponentCalls(), Counted(), torch.zeros(2, 3)
    names = [call(calls, net, x), call(calls, net, x=torch.ones(2, 3)), call(calls, net, x, flip=True)]
    assert names == ["net", "net", "net_2"] and net.runs == 2
    assert call(calls, net, torch.zeros(4, 3)) == "net_3"
    signature = calls.call("net", net, "forward", (x,), {})[0]
    assert [port.type for port in (*signature.inputs, *signature.outputs)] == [Type("float32", (2, 3))] * 2


def test_a_call_with_half_of_the_batch_is_part_of_the_other() -> None:
    calls, net = ComponentCalls(), Counted()
    for rows in (4, 2, 3):
        call(calls, net, torch.zeros(rows, 3))
    assert calls.parts() == {"net": "net_2"}


def test_a_component_that_does_not_fit_is_named() -> None:
    with pytest.raises(CaptureError, match="net does not fit"):
        call(ComponentCalls(), nn.Linear(3, 3), torch.zeros(2, 5))


def test_what_is_returned_keeps_its_structure() -> None:
    one, two, three = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    returned = {"a": one, "b": [SimpleNamespace(mean=two, kind="normal"), 7], "c": three}
    assert [len(tensor) for tensor in returned_tensors(returned)] == [1, 2, 3]
    copy = with_tensors(returned, iter([three, one, two]))
    assert (copy["a"] is three, copy["b"][0].mean is one, copy["c"] is two) == (True, True, True)
    assert copy["b"][0].kind == "normal" and copy["b"][1] == 7 and returned["b"][0].mean is two  # type: ignore[index]
