"""Define plugins: operators of a package's own, and the libraries that compute them.

A package registers its `Plugin` in the entry-point group ``diffc.plugins``, under the name that is its namespace in
``torch.ops`` and its domain in ONNX. It is imported only where a graph uses its operators. Bundles never bring code: a
manifest states which libraries a graph was lowered for, and they are taken from the package that is installed.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diffc.runtime.entry_points import find_entry_point
from diffc.runtime.errors import BundleError, DiffcError, DiffcWarning

GROUP = "diffc.plugins"


@dataclass(frozen=True)
class CustomOperator:
    """Describe one operator: its definition in torch, and its form in ONNX.

    ``torch`` is its name in the namespace, ``onnx`` that in the domain. The first ``inputs`` parameters of the torch
    operator are tensors, the next ``optional`` may be; those named in ``attributes`` become attributes, and others are
    left out. ``function`` is the operator in terms of ONNX's own, a function in ONNX's textual syntax, for engines
    that have no library: without one, only an engine with a library computes it.
    """

    torch: str
    onnx: str
    inputs: int
    optional: int = 0
    attributes: tuple[str, ...] = ()
    function: str = ""


@dataclass(frozen=True)
class Plugin:
    """Describe the operators of one domain, and who brings them.

    ``package`` is the name to install, ``definitions`` the module that defines the torch operators with their shape
    rules (the compiler alone imports it), and ``libraries`` the shared library for each engine, such as
    ``{"onnxruntime": Path(…)}``.
    """

    domain: str
    package: str
    definitions: str
    operators: tuple[CustomOperator, ...]
    libraries: Mapping[str, Path] = field(default_factory=dict)

    def entry(self, operators: set[str], engine: str) -> dict[str, Any]:
        """Return the manifest's entry for a graph with these operators, which an engine's library computes."""
        library = self.libraries[engine]
        return {
            "package": self.package,
            "version": version(self.package),
            "operators": sorted(operators),
            "library": library.name,
            "sha256": digest(library),
            "has_functions": all(each.function for each in self.operators if each.onnx in operators),
        }


def find_plugin(domain: str, error: type[DiffcError] = BundleError) -> Plugin:
    """Import the plugin that is registered for a domain.

    Raises an ``error`` where there is none, where there are two, or where it cannot be imported.
    """
    point = find_entry_point(GROUP, domain, "plugin", error)
    try:
        plugin: Plugin = point.load()
    except (ImportError, AttributeError) as reason:
        fix = "install the package that it needs"
        raise error(f"plugin {domain!r} cannot be imported: {reason}", where=point.value, fix=fix) from reason
    return plugin


def library_of(domain: str, entry: Mapping[str, Any], engine: str) -> Path | None:
    """Return the installed library for a manifest's entry; None where the graph's own functions take its place.

    Raises `BundleError` with the package to install where it is missing, or of another version, and the graph has no
    functions; with functions, it warns once.
    """
    package, names = f"{entry['package']}=={entry['version']}", ", ".join(f"{domain}.{n}" for n in entry["operators"])
    what = _missing(domain, entry, engine)
    if what is None:
        return find_plugin(domain).libraries[engine]
    if not entry["has_functions"]:
        raise BundleError(f"{names}: {what}", where="manifest.json", fix=f"pip install '{package}'")
    _warn_once(f"{names} runs without its kernel: {what}\n  fix: pip install '{package}'")
    return None


def _missing(domain: str, entry: Mapping[str, Any], engine: str) -> str | None:
    """Return why a library cannot be used; None where it can."""
    try:
        installed = version(entry["package"])
        library = find_plugin(domain).libraries.get(engine)
    except PackageNotFoundError:
        return f"{entry['package']} is not installed"
    except BundleError as error:
        return error.what
    if installed != entry["version"]:
        return f"{entry['package']} is {installed}, and the bundle was built with {entry['version']}"
    if library is None or not library.is_file():
        return f"{entry['package']} brings no library for {engine} on this machine"
    return None


def state_of(domain: str, entry: Mapping[str, Any], engine: str) -> tuple[bool, str]:
    """Return whether an entry's operators run here, and the kernel or function that computes them."""
    what = _missing(domain, entry, engine)
    if what is not None:
        runs = bool(entry["has_functions"])
        return runs, f"{what}; {'their functions run instead' if runs else 'the bundle does not run'}"
    library = find_plugin(domain).libraries[engine]
    same = "" if digest(library) == entry["sha256"] else ", another build than the bundle's"
    return True, f"{library.name} of {entry['package']} {entry['version']}{same}"


def digest(library: Path) -> str:
    """Return the SHA-256 of a library, in hexadecimal."""
    with library.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, DiffcWarning, stacklevel=2)
