"""Describe what a component computes with besides its arguments, and restore it: attributes, hooks, processors.

Pipelines change their components during a call and undo the changes at its end: they exchange attention processors,
register hooks, scale adapters. So the state of a component belongs to each of its calls. It is what can be reached from
the module: its submodules, their attributes and hooks, the functions among them with what they close over, the
functions of their classes, and the data of Python modules that functions read.
"""

from __future__ import annotations

import enum
import functools
import logging
import operator
import types
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

ATOMS = (types.NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, range)
DATA = (*ATOMS, list, dict, tuple, set, frozenset, deque)
OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, logging.Logger, enum.Enum, torch.Generator)
"""Objects that are what they are: nothing is reached from them."""

IDLE = (
    "_non_persistent_buffers_set",
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
"""Attributes of modules that no call reads."""

LIBRARIES = ("torch", "builtins", "collections", "typing", "abc", "functools")
"""Packages whose classes and functions stay as they are."""

Place = tuple[Any, Any]
"""A container that can be changed, and a key of it."""

_MISSING = object()


@dataclass(frozen=True, eq=False)
class Globals:
    """Refer to the names of a Python module that one function reads."""

    namespace: dict[str, Any]
    names: tuple[str, ...]


class ComponentState:
    """Hold the state of a module at a moment.

    Where the ``key`` of two states is equal, calls in both compute the same. Objects are compared by their attributes,
    whatever their order, functions by their code and what they close over, tensors by their identity and version.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._tokens, self._seen, self._pending = list[Any](), dict[int, int](), list[Any]([module])
        self._reached, self._copies = list[Any](), list[tuple[Any, dict[Any, Any]]]()
        self._versions, self._kinds = list[tuple[torch.Tensor, tuple[int, ...]]](), list[tuple[Any, type]]()
        self._members = list[tuple[type, dict[str, Any]]]()
        while self._pending:
            self._visit(self._pending.pop())
        self.key = tuple(self._tokens)

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if kind in ATOMS:
            self._tokens += (kind, value)
        elif id(value) in self._seen:
            self._tokens.append(self._seen[id(value)])
        else:
            self._reach(value)
            self._tokens.append(kind)
            self._pending += self._children(value)

    def _reach(self, value: Any) -> None:
        self._seen[id(value)] = len(self._seen)
        self._reached.append(value)  # so that no later object gets its id

    def _children(self, value: Any) -> list[Any]:
        """List the values that an object consists of, and keep a copy of it if it can be changed."""
        if isinstance(value, torch.Tensor):
            version = _version(value)
            self._tokens += (id(value), *version)
            self._versions.append((value, version))
            return []
        if isinstance(value, list | dict | set | deque | types.CellType):
            return self._keep(value)
        if isinstance(value, tuple | frozenset):
            self._tokens.append(len(value))
            return list(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return [value.__func__, value.__self__]
        if isinstance(value, functools.partial):
            return [value.func, value.args, value.keywords]
        if isinstance(value, OPAQUE) or not hasattr(value, "__dict__"):
            self._tokens.append(id(value))
            return []
        self._kinds.append((value, type(value)))
        attributes = self._keep(vars(value))
        in_order = sorted(zip(attributes[::2], attributes[1::2], strict=True), key=lambda pair: str(pair[0]))
        return [*self._class(type(value)), *(part for pair in in_order for part in pair)]

    def _keep(self, container: Any) -> list[Any]:
        """Copy a container; return its contents, with keys, but for those that number all hooks ever registered."""
        copy = _contents(container)
        self._copies.append((container, copy))
        self._tokens.append(len(copy))
        if isinstance(container, OrderedDict) and all(type(key) is int for key in copy):
            return list(copy.values())
        return [part for key, item in copy.items() if key not in IDLE for part in (key, item)]

    def _function(self, function: types.FunctionType) -> list[Any]:
        self._tokens.append(id(function.__code__))
        if _is_of_library(function):
            return []
        namespace = function.__globals__
        names = [n for n in function.__code__.co_names if n in namespace and type(namespace[n]) in DATA]
        data = self._keep(Globals(namespace, tuple(names))) if names else []
        return [*data, function.__defaults__, function.__kwdefaults__, *(function.__closure__ or ())]

    def _class(self, kind: type) -> list[Any]:
        if id(kind) in self._seen:
            return []
        self._reach(kind)
        bases = [(base, dict(vars(base))) for base in kind.__mro__ if not _is_of_library(base)]
        self._members += bases
        return [member for _, own in bases for member in own.values() if isinstance(member, types.FunctionType)]

    def holds(self) -> bool:
        """Return whether the module is still in this state, in far less time than it takes to describe it."""
        return (
            all(_holds(*pair) for pair in self._copies)
            and all(_version(tensor) == version for tensor, version in self._versions)
            and all(type(value) is kind for value, kind in self._kinds)
            and all(vars(kind) == own for kind, own in self._members)
        )

    def is_equal_now(self) -> bool:
        """Return whether calls compute the same as in this state, be it in other containers of equal contents."""
        return self.holds() or ComponentState(self.module).key == self.key

    def changes(self) -> list[Place]:
        """List the places whose values are no longer what they were."""
        changed = [pair for pair in self._copies if not _holds(*pair)]
        return [(container, key) for container, copy in changed for key in _changed(container, copy)]

    def restore(self, changed: Any) -> None:
        """Restore the contents of one container."""
        _fill(changed, next(copy for container, copy in self._copies if container is changed))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the state in this block."""
        present = [(container, _contents(container)) for container, copy in self._copies if not _holds(container, copy)]
        try:
            self.undo()
            yield
        finally:
            self.undo()
            for container, contents in present:
                _fill(container, contents)

    def undo(self) -> None:
        """Restore whatever has changed since."""
        for container, copy in self._copies:
            if not _holds(container, copy):
                _fill(container, copy)


def _version(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the number of writes into a tensor, and its memory; fake tensors have none."""
    writes = 0 if tensor.is_inference() else tensor._version
    return (writes, tensor.data_ptr()) if type(tensor) in (torch.Tensor, nn.Parameter) else (writes,)


def value_at(place: Place) -> Any:
    """Return the value at a place; None where there is none any more."""
    container, key = place
    return _contents(container).get(key)


def put(place: Place, value: Any) -> None:
    """Replace the value at a place."""
    container, key = place
    _fill(container, _contents(container) | {key: value})


def _is_of_library(definition: Any) -> bool:
    return (definition.__module__ or "").partition(".")[0] in LIBRARIES


def _contents(container: Any) -> dict[Any, Any]:
    """Copy the contents of a container, by key; a cell has one key at most, elements of a set are their own."""
    if isinstance(container, Globals):
        return {name: container.namespace[name] for name in container.names if name in container.namespace}
    if isinstance(container, types.CellType):
        try:
            return {0: container.cell_contents}
        except ValueError:  # nothing is assigned yet
            return {}
    if isinstance(container, set):
        return {element: element for element in container}
    return dict(container.items() if isinstance(container, dict) else enumerate(container))


def _fill(container: Any, contents: dict[Any, Any]) -> None:
    if isinstance(container, Globals):
        container.namespace.update(contents)
    elif isinstance(container, types.CellType):
        del container.cell_contents
        if contents:
            container.cell_contents = contents[0]
    else:
        container.clear()
        if isinstance(container, dict):
            container.update(contents)
        elif isinstance(container, set):
            container.update(contents.values())
        else:
            container.extend(contents.values())


def _holds(container: Any, copy: dict[Any, Any]) -> bool:
    """Return whether the contents of a container are those of its copy."""
    now = container if isinstance(container, dict) else _contents(container)
    is_same = (
        len(now) == len(copy) and all(map(operator.is_, now.values(), copy.values())) and now.keys() == copy.keys()
    )
    return is_same or not _changed(container, copy)


def _changed(container: Any, copy: dict[Any, Any]) -> list[Any]:
    now = _contents(container)
    return [key for key in {**copy, **now} if not _same(now.get(key, _MISSING), copy.get(key, _MISSING))]


def _same(one: Any, two: Any) -> bool:
    return one is two or type(one) is type(two) and type(one) in ATOMS and bool(one == two)
