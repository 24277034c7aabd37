"""Copy, compare and restore the contents of objects that can be changed, by key.

Containers are lists, dictionaries, sets, queues, arrays, variables of closures and of contexts, functions, classes, the
attributes of objects without a dictionary, and the names of a Python module that code reads.
"""

from __future__ import annotations

import operator
import types
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

ATOMS = (types.NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, range)
"""Types of values that are compared by themselves."""

CONTAINERS = (list, dict, OrderedDict, set, deque, bytearray, np.ndarray, types.CellType, ContextVar)
"""Types of objects that consist of their contents."""

FUNCTION = ("__code__", "__defaults__", "__kwdefaults__")
"""What a function consists of, besides its attributes and its closure."""

_definition = operator.attrgetter(*FUNCTION)

Place = tuple[Any, Any]
"""A container that can be changed, and a key of it."""

_MISSING = object()


@dataclass(frozen=True, eq=False)
class Globals:
    """Refer to some names of a Python module."""

    namespace: dict[str, Any]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Slots:
    """Refer to the attributes of an object that are in no dictionary."""

    owner: Any
    names: tuple[str, ...]


def value_at(place: Place) -> Any:
    """Return the value at a place; None where there is none any more."""
    container, key = place
    return contents_of(container).get(key)


def put(place: Place, value: Any) -> None:
    """Replace the value at a place."""
    container, key = place
    fill(container, contents_of(container) | {key: value})


@cache
def slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of the attributes of objects of a class that are in no dictionary."""
    members = (pair for base in kind.__mro__ if "__slots__" in vars(base) for pair in vars(base).items())
    return tuple(name for name, member in members if isinstance(member, types.MemberDescriptorType))


def contents_of(container: Any) -> dict[Any, Any]:
    """Copy the contents of a container, by key; a variable has one key at most, elements of a set are their own."""
    match container:
        case dict():
            return _entries(container)
        case list() | deque():
            return dict(enumerate(container))
        case set():
            return {element: element for element in container}
        case Globals() | Slots():
            return _named(container)
        case types.FunctionType():
            return vars(container) | dict(zip(FUNCTION, _definition(container), strict=True))
        case type():
            return dict(vars(container))
        case np.ndarray() | bytearray():
            return {0: container.tobytes() if isinstance(container, np.ndarray) else bytes(container)}
        case types.CellType() | ContextVar():
            return _variable(container)
    raise TypeError(f"{type(container)} is no container")


def _entries(container: dict[Any, Any]) -> dict[Any, Any]:
    """Copy the entries of a dictionary itself, in its order, whatever the methods of its class return."""
    if type(container) is dict:
        return container.copy()
    keys = OrderedDict.__iter__(container) if isinstance(container, OrderedDict) else dict.__iter__(container)
    return {key: dict.__getitem__(container, key) for key in keys}


def _named(container: Globals | Slots) -> dict[str, Any]:
    if isinstance(container, Globals):
        return {name: container.namespace[name] for name in container.names if name in container.namespace}
    return {name: getattr(container.owner, name) for name in container.names if hasattr(container.owner, name)}


def _variable(container: types.CellType | ContextVar[Any]) -> dict[int, Any]:
    try:
        return {0: container.get() if isinstance(container, ContextVar) else container.cell_contents}
    except (LookupError, ValueError):  # nothing is assigned yet
        return {}


def fill(container: Any, contents: dict[Any, Any]) -> None:
    """Restore the contents of a container from a copy."""
    match container:
        case Globals():
            container.namespace.update(contents)
        case types.CellType():
            del container.cell_contents
            if contents:
                container.cell_contents = contents[0]
        case ContextVar():
            container.set(contents.get(0))
        case np.ndarray():
            container[...] = np.frombuffer(contents[0], container.dtype).reshape(container.shape)
        case dict() | set() | list() | deque() | bytearray():
            container.clear()
            _extend(container, contents)
        case Slots():
            _set_attributes(container.owner, contents_of(container), contents)
        case _:
            _set_attributes(container, contents_of(container), contents)


def _extend(container: Any, contents: dict[Any, Any]) -> None:
    if isinstance(container, dict):
        container.update(contents)
    elif isinstance(container, set):
        container.update(contents.values())
    else:
        container.extend(contents[0] if isinstance(container, bytearray) else contents.values())


def _set_attributes(owner: Any, present: dict[Any, Any], contents: dict[Any, Any]) -> None:
    """Set the attributes of a function, a class, or an object with slots, that differ."""
    for name in present.keys() - contents.keys():
        delattr(owner, name)
    for name, value in contents.items():
        if name not in present or present[name] is not value:
            setattr(owner, name, value)


def holds(container: Any, copy: dict[Any, Any]) -> bool:
    """Return whether the contents of a container are those of its copy; most are, which takes no other copy."""
    now: Mapping[Any, Any]
    if type(container) in (dict, OrderedDict):
        now = container
    else:
        now = vars(container) if isinstance(container, type) else contents_of(container)
    is_same = len(now) == len(copy) and (
        not copy or (all(map(operator.is_, now.values(), copy.values())) and all(map(operator.is_, now, copy)))
    )
    return is_same or not changed_keys(container, copy)


def changed_keys(container: Any, copy: dict[Any, Any]) -> list[Any]:
    """List the keys of a container whose values are no longer those of its copy."""
    return _differing(contents_of(container), copy)


def _differing(now: dict[Any, Any], copy: dict[Any, Any]) -> list[Any]:
    return [key for key in {**copy, **now} if not _same(now.get(key, _MISSING), copy.get(key, _MISSING))]


def _same(one: Any, two: Any) -> bool:
    return one is two or type(one) is type(two) and type(one) in ATOMS and bool(one == two)
