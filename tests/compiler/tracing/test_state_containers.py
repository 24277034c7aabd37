"""Contents of containers are copied, compared and restored."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffc.compiler.tracing.state_containers import (
    Globals,
    Slots,
    changed_keys,
    contents_of,
    fill,
    holds,
    put,
    slots_of,
    value_at,
)


@dataclass(slots=True)
class Point:
    """Hold two numbers in slots."""

    x: int = 1
    y: int = 2


def _function(x: int = 1) -> int:
    return x


NAMES = {"read": 1, "other": 2}
POINT, VARIABLE, KIND = Point(), ContextVar[int]("VARIABLE"), type("Kind", (), {"value": 1})

CONTAINERS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "a list": (numbers := [1, 2], numbers.reverse),
    "a queue": (queue := deque([1, 2]), queue.rotate),
    "a set": (members := {1, 2}, members.clear),
    "a dictionary": (entries := {1: 2}, entries.clear),
    "bytes": (octets := bytearray(b"12"), octets.reverse),
    "an array": (array := np.ones((2, 2)), lambda: array.fill(2.0)),
    "names": (Globals(NAMES, ("read",)), lambda: NAMES.update(read=3)),
    "slots": (Slots(POINT, slots_of(Point)), lambda: setattr(POINT, "y", 3)),
    "a variable": (VARIABLE, lambda: VARIABLE.set(1)),
    "a function": (_function, lambda: setattr(_function, "__defaults__", (2,))),
    "an attribute of a function": (_function, lambda: setattr(_function, "attribute", 2)),
    "a class": (KIND, lambda: setattr(KIND, "value", 2)),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_contents_are_compared_and_restored(name: str) -> None:
    container, change = CONTAINERS[name]
    copy = contents_of(container)
    assert holds(container, copy) and changed_keys(container, copy) == []
    change()
    assert not holds(container, copy) and changed_keys(container, copy)
    fill(container, copy)
    assert holds(container, copy) or (name == "a variable" and VARIABLE.get() is None)


def test_a_place_is_read_and_replaced() -> None:
    entries = {"a": 1}
    put((entries, "b"), 2)
    assert entries == {"a": 1, "b": 2} and value_at((entries, "b")) == 2 and value_at((entries, "c")) is None


def test_what_is_no_container_is_an_error() -> None:
    with pytest.raises(TypeError, match="SimpleNamespace'> is no container"):
        contents_of(SimpleNamespace())
