"""A state is equal where calls compute the same, however its objects came to be; and it can be restored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from diffc.compiler.tracing.component_state import ComponentState, put, value_at

SCALE = 1.0
"""Data of this Python module that a call reads."""

OFFSET: float | None = None
"""Data that are set later."""


class Scaled:
    """Scale, as an attention processor would."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class Net(nn.Module):
    """Compute with a processor, a weight, a table of options and values of this Python module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.processor: Callable[[torch.Tensor], torch.Tensor] = Scaled(2.0)
        self.options = {"scales": [1.0, 2.0]}
        self.skipped, self.recent = {8, 0}, deque([1.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute."""
        return self.processor(self.inner(x)) * SCALE * (OFFSET or 1.0)


def hook(factor: float) -> Callable[..., Any]:
    """Return a new function that closes over a number."""
    return lambda module, args, output: output * factor


def test_equal_objects_make_an_equal_state() -> None:
    net = Net()
    with net.inner.register_forward_hook(hook(2.0)):
        first = ComponentState(net)
    net.processor = Scaled(2.0)
    with net.inner.register_forward_hook(hook(2.0)):
        assert ComponentState(net).key == first.key
    with net.inner.register_forward_hook(hook(3.0)):
        assert ComponentState(net).key != first.key


def _write(net: Net) -> None:
    with torch.no_grad():
        net.inner.weight += 1


CHANGES: dict[str, Callable[[Net], Any]] = {
    "a processor": lambda net: setattr(net, "processor", Scaled(3.0)),
    "an attribute of a processor": lambda net: setattr(net.processor, "scale", 3.0),
    "an entry of a list": lambda net: net.options["scales"].append(3.0),
    "an element of a set": lambda net: net.skipped.add(3),
    "another element of a set": lambda net: [net.skipped.discard(8), net.skipped.add(16)],
    "an end of a queue": lambda net: net.recent.appendleft(2.0),
    "a hook": lambda net: net.inner.register_forward_hook(hook(1.0)),
    "a module": lambda net: setattr(net, "inner", nn.Linear(3, 3)),
    "the mode": lambda net: net.inner.eval(),
    "a weight, in place": _write,
    "a class": lambda net: setattr(net, "__class__", type("Patched", (Net,), {})),
    "a method": lambda net: setattr(net.inner, "forward", lambda x: x),
    "a data parameter": lambda net: setattr(net.inner.weight, "data", torch.zeros(3, 3)),
}


def test_the_order_in_which_attributes_were_set_is_no_part_of_the_state() -> None:
    net = Net()
    before = ComponentState(net).key
    net.processor = net.__dict__.pop("processor")
    assert list(vars(net))[-1] == "processor" and ComponentState(net).key == before


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_and_undone(change: str) -> None:
    net = Net()
    state = ComponentState(net)
    assert state.holds() and not state.changes()
    CHANGES[change](net)
    changed = ComponentState(net)
    assert not state.holds() and changed.key != state.key
    with state.restored():
        is_restored = ComponentState(net).key == state.key
    assert is_restored == (change not in ("a weight, in place", "a class", "a data parameter"))
    assert ComponentState(net).key == changed.key


def test_data_that_a_function_reads_belong_to_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    state = ComponentState(net)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert not state.holds() and ComponentState(net).key != state.key
    with state.restored():
        assert SCALE == 1.0
    assert SCALE == 2.0


def test_data_that_are_set_later_belong_to_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    state = ComponentState(Net())
    monkeypatch.setitem(globals(), "OFFSET", 2.0)
    assert not state.holds()
    with state.restored():
        assert OFFSET is None
    assert OFFSET == 2.0


def test_a_variable_of_a_closure_that_is_assigned_later_is_restored() -> None:
    def assign(value: float) -> None:
        nonlocal scale
        scale = value

    net = Net()
    net.processor = lambda x: x * scale
    state = ComponentState(net)
    scale: float
    assign(2.0)
    assert not state.holds()
    with state.restored(), pytest.raises(NameError):
        net(torch.zeros(1, 3))
    assert scale == 2.0


def test_a_place_is_an_entry_or_a_variable_of_a_closure() -> None:
    stored: Any = None

    def store(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        nonlocal stored
        stored = output

    net = Net()
    net.inner.register_forward_hook(store)
    net.processor = SimpleNamespace(seen=None)  # type: ignore[assignment]
    state = ComponentState(net)
    net.inner(torch.zeros(1, 3))
    net.processor.seen = 1  # type: ignore[attr-defined]
    places = {
        str(value_at(place).shape if torch.is_tensor(value_at(place)) else value_at(place)): place
        for place in state.changes()
    }
    assert places.keys() == {"torch.Size([1, 3])", "1"}
    put(places["torch.Size([1, 3])"], "other")
    assert stored == "other"
    state.undo()
    assert stored is None and not state.changes()
