"""Find what code may read of Python modules: the names in it, the modules that it imports, and the libraries."""

from __future__ import annotations

import dis
import importlib.util
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

INSTALLED = ("site-packages", "dist-packages")
"""The folders into which Python installs packages."""


def is_of_library(definition: Any) -> bool:
    """Return whether a function or a class is compared by its identity, and nothing that its code reads is followed."""
    module = definition.__module__
    return isinstance(module, str) and is_library(module.partition(".")[0])


@cache
def is_library(package: str) -> bool:
    """Return whether no pipeline exchanges what the code of a package reads.

    Such are Python and PyTorch, which components stand on, and packages that are installed and know no PyTorch, so that
    they compute with none of its tensors. All other code is a model's, a pipeline's or the user's.
    """
    if package in sys.stdlib_module_names or package == "torch":
        return True
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == package]
    files = [Path(getattr(module, "__file__", None) or "") for module in modules]
    is_installed = any(folder in file.parts for file in files for folder in INSTALLED)
    return is_installed and not any(_knows_torch(module) for module in modules)


def _knows_torch(module: types.ModuleType) -> bool:
    values = [
        value for value in vars(module).values() if isinstance(value, types.ModuleType | types.FunctionType | type)
    ]
    homes = (value.__name__ if isinstance(value, types.ModuleType) else value.__module__ for value in values)
    return any(isinstance(home, str) and home.partition(".")[0] == "torch" for home in homes)


@cache
def names_of(code: types.CodeType) -> frozenset[str]:
    """Return the names of variables of modules, and of attributes, in code and the code inside of it, and its strings.

    A string may be the name of an attribute that ``getattr`` reads.
    """
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    strings = (constant for constant in code.co_consts if isinstance(constant, str) and constant.isidentifier())
    return frozenset(code.co_names).union(strings, *map(names_of, inner))


def imported_by(function: types.FunctionType) -> list[types.ModuleType]:
    """List the modules, among those that are loaded, which a function imports when it runs."""
    package = function.__globals__.get("__package__") or ""
    names = (
        importlib.util.resolve_name(name, package) for name in _imports(function.__code__) if package or name[0] != "."
    )
    return [sys.modules[name] for name in names if name in sys.modules]


@cache
def _imports(code: types.CodeType) -> tuple[str, ...]:
    """Return the names of the modules that code imports, with a dot in front for each level."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _imports(part)]
    if dis.opmap["IMPORT_NAME"] not in code.co_code[::2]:
        return tuple(inner)
    steps = list(dis.get_instructions(code))
    imports = [(steps[i - 2].argval, step.argval) for i, step in enumerate(steps) if step.opname == "IMPORT_NAME"]
    return (*inner, *("." * level + name for level, name in imports))
