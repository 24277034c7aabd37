"""A state is equal where calls compute the same, however its objects came to be; and it can be restored."""

from __future__ import annotations

import functools
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.component_state import ComponentState
from diffc.compiler.tracing.state_containers import put, value_at
from tests import tolerances

SCALE = 1.0
"""Data of this Python module that a call reads."""

OFFSET: float | None = None
"""Data that are set later."""

OPTIONS, CONTEXT = SimpleNamespace(scale=1.0, factors=[1.0]), ContextVar("CONTEXT", default=1.0)
TENSOR, ARRAY, BYTES = torch.ones(1), np.ones(1, np.float32), bytearray((1, 3))
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"scaled": lambda x: x}
HERE, MODULE = sys.modules[__name__], SimpleNamespace(module=tolerances)
FACTORS = [1.0]
LAST = FACTORS.__len__
PARTIAL = functools.partial(lambda factors, x: x * factors[-1], [1.0])
LOCAL = threading.local()
LOCAL.scale = 1.0


class Registry:
    """Hold data of a class."""

    scale = 1.0

    @classmethod
    def scaled(cls, x: torch.Tensor) -> torch.Tensor:
        """Scale."""
        return x * cls.scale


@dataclass(slots=True)
class Slotted:
    """Hold data without a dictionary."""

    scale: float = 1.0


class Table(dict[str, float]):
    """Hold an attribute besides the entries."""

    def __init__(self) -> None:
        super().__init__(entry=1.0)
        self.scale = 1.0


class Constant:
    """Return a constant for an attribute."""

    def __init__(self) -> None:
        self.value = 1.0

    def __get__(self, owner: Any, kind: Any = None) -> float:
        return self.value


class Described:
    """Hold a property and a descriptor."""

    constant = Constant()

    @property
    def scale(self) -> float:
        """Return data of this Python module."""
        return OPTIONS.scale  # type: ignore[no-any-return]


SLOTTED, TABLE, DESCRIBED = Slotted(), Table(), Described()
REFERENCE = weakref.ref(TABLE)


def _with_default(x: torch.Tensor, factors: Sequence[float] = (1.0,)) -> torch.Tensor:
    return x * factors[0]


def _importing(x: torch.Tensor) -> torch.Tensor:
    from tests.tolerances import PICTURE

    return x * PICTURE


def _scaled(x: torch.Tensor) -> torch.Tensor:
    return x * OPTIONS.factors[0]


def _set(target: Any, name: str, value: Any) -> None:
    setattr(target, name, value)


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


READ: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[], Any]]] = {
    "data of a function that it calls": (lambda x: _scaled(x), lambda: _set(OPTIONS, "factors", [3.0])),
    "an object": (lambda x: x * OPTIONS.scale, lambda: _set(OPTIONS, "scale", 3.0)),
    "an object that is replaced": (
        lambda x: x * OPTIONS.scale,
        lambda: _set(HERE, "OPTIONS", SimpleNamespace(scale=3)),
    ),
    "a class": (lambda x: x * Registry.scale, lambda: _set(Registry, "scale", 3.0)),
    "a class, by its method": (lambda x: Registry.scaled(x), lambda: _set(Registry, "scale", 3.0)),
    "an object without a dictionary": (lambda x: x * SLOTTED.scale, lambda: _set(SLOTTED, "scale", 3.0)),
    "an object with entries": (lambda x: x * TABLE.scale, lambda: _set(TABLE, "scale", 3.0)),
    "a property": (lambda x: x * DESCRIBED.scale, lambda: _set(OPTIONS, "scale", 3.0)),
    "a property that is replaced": (lambda x: x * DESCRIBED.scale, lambda: _set(Described, "scale", 3.0)),
    "a descriptor": (lambda x: x * DESCRIBED.constant, lambda: _set(vars(Described)["constant"], "value", 3.0)),
    "a function of a table": (lambda x: FUNCTIONS["scaled"](x), lambda: FUNCTIONS.update(scaled=lambda x: x * 3.0)),
    "a function of a library": (lambda x: nn.functional.relu(x), lambda: _set(nn.functional, "relu", torch.neg)),
    "a default": (lambda x: _with_default(x), lambda: _set(_with_default, "__defaults__", ([3.0],))),
    "a partial call": (lambda x: PARTIAL(x), lambda: PARTIAL.args[0].append(3.0)),
    "a method of a list": (lambda x: x * LAST(), lambda: FACTORS.append(3.0)),
    "a weak reference": (lambda x: x * getattr(REFERENCE(), "scale", 0.0), lambda: _set(TABLE, "scale", 3.0)),
    "a context": (lambda x: x * CONTEXT.get(), lambda: CONTEXT.set(3.0)),
    "a thread": (lambda x: x * LOCAL.scale, lambda: _set(LOCAL, "scale", 3.0)),
    "the environment": (lambda x: x * len(os.getenv("DIFFC_TOY", "")), lambda: os.environ.update(DIFFC_TOY="toy")),
    "a tensor": (lambda x: x * TENSOR, lambda: TENSOR.fill_(3.0)),
    "an array": (lambda x: x * float(ARRAY[0]), lambda: ARRAY.fill(3.0)),
    "bytes": (lambda x: x * BYTES[0], lambda: BYTES.reverse()),
    "another Python module": (lambda x: x * tolerances.PICTURE, lambda: _set(tolerances, "PICTURE", 3.0)),
    "an import": (lambda x: _importing(x), lambda: _set(tolerances, "PICTURE", 3.0)),
    "a Python module of an object": (lambda x: x * MODULE.module.PICTURE, lambda: _set(tolerances, "PICTURE", 3.0)),
    "code inside of code": (lambda x: sum(x * OPTIONS.scale for _ in range(2)), lambda: _set(OPTIONS, "scale", 3.0)),
}
"""Code that reads a value of a Python module, and what changes that value."""


@pytest.mark.parametrize("name", READ)
def test_whatever_code_reads_of_python_modules_belongs_to_the_state(name: str) -> None:
    net = Net()
    net.processor, change = READ[name]
    state, before = ComponentState(net), net.processor(torch.ones(1))
    change()
    try:
        assert not torch.equal(net.processor(torch.ones(1)), before)
        assert not state.holds() and ComponentState(net).key != state.key
        with state.restored():
            is_restored = ComponentState(net).key == state.key
            assert torch.equal(net.processor(torch.ones(1)), before) == is_restored
        assert is_restored == (name != "a tensor")
    finally:
        state.undo()
        TENSOR.fill_(1.0)


@pytest.mark.parametrize("iterator", [iter([1.0]), (scale for scale in [1.0])], ids=["of a list", "generator"])
def test_an_iterator_is_refused_for_its_position_is_hidden(iterator: Iterator[float]) -> None:
    net = Net()
    net.processor = lambda x: x * next(iterator)
    with pytest.raises(CaptureError, match=f"Net reads a {type(iterator).__name__}, whose position cannot be recorded"):
        ComponentState(net)


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
