"""Describe what a component computes with besides the tensors of a call, and restore it.

Pipelines change their components during a call and undo the changes at its end: they exchange attention processors,
register hooks, scale adapters. So the state of a component belongs to each of its calls. It is what can be reached from
the module and the call's other arguments: submodules, attributes and hooks, functions with what they close over, and
whatever their code reads of Python modules: data, objects, classes, other functions. Of a class, data belong to it, and
the methods whose names occur in code that is reached. Libraries (`is_library`) are compared by the identity of what is
read of them, by own code and by layers. Environment variables and global hooks always belong to it.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import gc
import logging
import operator
import os
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.code_names import imported_by, is_library, is_of_library, names_of
from diffc.compiler.tracing.state_containers import (
    ATOMS,
    CONTAINERS,
    Globals,
    Place,
    Slots,
    changed_keys,
    contents_of,
    fill,
    holds,
    slots_of,
)

ENTRY_POINTS = ("forward", "encode", "decode")
"""The methods by which a pipeline calls a component."""

OPAQUE = (types.ModuleType, logging.Logger, enum.Enum, torch.Generator)
"""Objects that are what they are: nothing is reached from them."""

IDLE = (
    "_non_persistent_buffers_set",
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
"""Attributes of modules that no call reads."""

METHODS = (types.FunctionType, staticmethod, classmethod, property, type)
"""Types of members of classes that are code."""

AMBIENT = (os.environ, nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)
"""What libraries read for every component: environment variables, and the hooks of all modules."""

PARTS: Mapping[type, Callable[[Any], list[Any]]] = {
    types.MethodType: lambda method: [method.__func__, method.__self__],
    types.BuiltinFunctionType: lambda method: [method.__name__, method.__self__],
    types.MethodWrapperType: lambda method: [method.__name__, method.__self__],
    functools.partial: lambda call: [call.func, call.args, call.keywords],
    staticmethod: lambda method: [method.__func__],
    classmethod: lambda method: [method.__func__],
    property: lambda member: [member.fget],
    weakref.ref: lambda reference: [reference()],
    types.MappingProxyType: gc.get_referents,
    contextlib._GeneratorContextManager: lambda context: [context.func, context.args, context.kwds],
    types.GenericAlias: lambda alias: [alias.__origin__, alias.__args__],
}
"""The parts of objects that are changed by their parts alone, by their types."""


class ComponentState:
    """Hold the state of a module, and of the objects among the arguments of a call, at a moment.

    Where the ``key`` of two states is equal, calls in both compute the same. Objects are compared by their attributes,
    whatever their order, functions by their code and what they close over, tensors by their identity and version.
    """

    def __init__(self, module: nn.Module, *arguments: Any) -> None:
        self.module, self.arguments = module, arguments
        self._tokens, self._seen = list[Any](), dict[int, int]()
        self._pending = list[Any]([*AMBIENT, *reversed(arguments), module])
        self._reached, self._copies = list[Any](), list[tuple[Any, dict[Any, Any]]]()
        self._versions, self._kinds = list[tuple[torch.Tensor, tuple[int, ...]]](), list[tuple[Any, type]]()
        self._names, self._members = set(ENTRY_POINTS), dict[str, list[Any]]()
        self._read_names, self._modules = dict[int, set[str]](), list[dict[str, Any]]()
        while self._pending:
            self._visit(self._pending.pop())
        self.key = tuple(self._tokens)

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if kind in ATOMS:
            self._tokens += (kind, value)
            if kind is str and value not in self._names:
                self._pending += self._released({value})
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
        if type(value) in CONTAINERS:
            return self._keep(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, OPAQUE):
            self._tokens.append(id(value))
            return self._module(vars(value)) if isinstance(value, types.ModuleType) else []
        parts = next((PARTS[base] for base in type(value).__mro__ if base in PARTS), self._object)
        return parts(value)

    def _object(self, value: Any) -> list[Any]:
        """List the elements and the attributes of an object, and its class."""
        elements = self._keep(value) if isinstance(value, CONTAINERS) else []
        if isinstance(value, tuple | frozenset):
            self._tokens.append(len(value))
            elements = list(value)
        kind: type = type(value)
        slots = slots_of(kind)
        has_attributes = isinstance(getattr(value, "__dict__", None), dict)
        if isinstance(value, (*ATOMS, np.generic)):
            self._tokens.append(value)
        elif not elements and not slots and not has_attributes:
            self._tokens.append(id(value))
            if isinstance(value, Iterator):
                what = f"{type(self.module).__name__} reads a {kind.__name__}, whose position cannot be recorded"
                raise CaptureError(what, fix="keep a list, and the position in it as an attribute")
        if not slots and not has_attributes:
            return elements
        self._kinds.append((value, kind))
        attributes = self._keep(vars(value)) if has_attributes else []
        attributes += self._keep(Slots(value, slots)) if slots else []
        in_order = sorted(zip(attributes[::2], attributes[1::2], strict=True), key=lambda pair: str(pair[0]))
        return [*elements, kind, *(part for pair in in_order for part in pair)]

    def _keep(self, container: Any) -> list[Any]:
        """Copy a container; return its contents, with keys, but for those that number all hooks ever registered."""
        copy = contents_of(container)
        self._copies.append((container, copy))
        self._tokens.append(len(copy))
        if isinstance(container, OrderedDict) and all(type(key) is int for key in copy):
            return list(copy.values())
        return [
            part for key, item in copy.items() if not (isinstance(key, str) and key in IDLE) for part in (key, item)
        ]

    def _function(self, function: types.FunctionType) -> list[Any]:
        if is_of_library(function):
            self._tokens.append(id(function.__code__))
            return []
        names = names_of(function.__code__)
        read = self._read([function.__globals__, *map(vars, imported_by(function)), *self._modules], names)
        return [*self._released(names), *read, *self._keep(function), *(function.__closure__ or ())]

    def _released(self, names: Set[str]) -> list[Any]:
        """List the members of classes that are read now that these names occur."""
        new = sorted(names - self._names)
        self._names.update(new)
        return [part for name in new for part in self._members.pop(name, ())]

    def _class(self, kind: type) -> list[Any]:
        """List the data of a class and the methods that are read; the others follow where their names occur."""
        self._tokens.append(id(kind))
        if is_of_library(kind):
            return self._layer(kind) if issubclass(kind, nn.Module) else list(kind.__bases__)
        contents, read = contents_of(kind), list[Any]()
        self._copies.append((kind, contents))
        members = [(name, member) for name, member in contents.items() if name[:2] != "__" or callable(member)]
        for name, member in members:
            is_idle = isinstance(member, METHODS) and (not name.startswith("__") or name == "__init__")
            is_read = name in self._names or not is_idle
            (read if is_read else self._members.setdefault(name, [])).extend((name, member))
        return [type(kind), *kind.__bases__, *read]

    def _module(self, namespace: dict[str, Any]) -> list[Any]:
        """List what is read of a Python module that is an attribute, by code that is reached before or after."""
        self._modules.append(namespace)
        return self._read([namespace], self._names)

    def _layer(self, kind: type) -> list[Any]:
        """Note the methods of a layer of PyTorch, and list what it calls: both may be exchanged."""
        contents = contents_of(kind)
        self._copies.append((kind, contents))
        self._tokens += map(id, contents.values())
        called = [member for name, member in contents.items() if name == "forward" and hasattr(member, "__code__")]
        return [
            *kind.__bases__,
            *(part for one in called for part in self._read([one.__globals__], names_of(one.__code__))),
        ]

    def _read(self, namespaces: Iterable[dict[str, Any]], names: Set[str]) -> list[Any]:
        """List what these names refer to in Python modules, and in those that are reached through one of the names."""
        parts, seen = list[Any](), set[int]()
        for namespace in (pending := list(namespaces)):
            if id(namespace) not in seen:
                seen.add(id(namespace))
                own = sorted(name for name in names if name in namespace)
                pending += [vars(namespace[name]) for name in own if isinstance(namespace[name], types.ModuleType)]
                read = self._read_names.setdefault(id(namespace), set())
                parts += self._globals(namespace, [name for name in own if name not in read])
                read.update(own)
        return parts

    def _globals(self, namespace: dict[str, Any], names: list[str]) -> list[Any]:
        """List the values of names of a Python module; note the identity of modules, and of what belongs to PyTorch."""
        home = str(namespace.get("__name__"))
        of_library = is_library(home.partition(".")[0])
        if of_library and not home.startswith("torch.nn."):
            names = [name for name in names if type(namespace[name]) in ATOMS]
        values = {name: namespace[name] for name in names}
        same = [
            value for value in values.values() if isinstance(value, types.ModuleType) or callable(value) and of_library
        ]
        if names:
            self._copies.append((Globals(namespace, tuple(names)), values))
        self._tokens += (*names, *map(id, same))
        followed = [value for value in values.values() if not any(value is one for one in same)]
        classes = [value for value in followed if isinstance(value, type)]
        return [*followed, *map(operator.attrgetter("__init__"), classes)]

    def holds(self) -> bool:
        """Return whether the module is still in this state, in far less time than it takes to describe it."""
        return (
            all(holds(*pair) for pair in self._copies)
            and all(_version(tensor) == version for tensor, version in self._versions)
            and all(type(value) is kind for value, kind in self._kinds)
        )

    def is_equal_now(self) -> bool:
        """Return whether calls compute the same as in this state, be it in other containers of equal contents."""
        return self.holds() or ComponentState(self.module, *self.arguments).key == self.key

    def changes(self) -> list[Place]:
        """List the places whose values are no longer what they were."""
        changed = [pair for pair in self._copies if not holds(*pair)]
        return [(container, key) for container, copy in changed for key in changed_keys(container, copy)]

    def restore(self, changed: Any) -> None:
        """Restore the contents of one container."""
        fill(changed, next(copy for container, copy in self._copies if container is changed))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the state in this block."""
        changed = [
            (container, contents_of(container)) for container, copy in self._copies if not holds(container, copy)
        ]
        try:
            self.undo()
            yield
        finally:
            self.undo()
            for container, contents in changed:
                fill(container, contents)

    def undo(self) -> None:
        """Restore whatever has changed since."""
        for container, copy in self._copies:
            if not holds(container, copy):
                fill(container, copy)


def is_described(argument: Any) -> bool:
    """Return whether an argument that is no tensor belongs to the state: it has contents or attributes, or is code."""
    kind: type = type(argument)
    has_parts = isinstance(argument, (*CONTAINERS, types.FunctionType, type, *PARTS)) or hasattr(argument, "__dict__")
    return not isinstance(argument, ATOMS) and (has_parts or isinstance(argument, Iterator) or bool(slots_of(kind)))


def _version(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the number of writes into a tensor, and its memory; fake tensors have none."""
    writes = 0 if tensor.is_inference() else tensor._version
    return (writes, tensor.data_ptr()) if type(tensor) in (torch.Tensor, nn.Parameter) else (writes,)
