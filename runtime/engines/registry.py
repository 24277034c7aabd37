"""Open a graph with the engine that is registered for the bundle's target."""

from __future__ import annotations

import json
from weakref import WeakValueDictionary

from diffc.runtime.bundle.manifest import ONNX
from diffc.runtime.bundle.onnx_external_data import external_files
from diffc.runtime.bundle.open import Bundle
from diffc.runtime.engines.session import Engine, Session, reason
from diffc.runtime.entry_points import find_entry_point
from diffc.runtime.errors import BundleError

GROUP = "diffc.engines"

OPEN: WeakValueDictionary[tuple[object, ...], Session] = WeakValueDictionary()
"""The sessions that are open in this process: bundles that hold the same graph share one, with its weights."""


def open_graph(bundle: Bundle, graph: str, threads: int) -> Session:
    """Open a graph with the engine of the bundle's target, or return the session that another bundle has of it.

    Raises `BundleError` where it cannot be opened, or the bundle changed after it was loaded.
    """
    where = bundle.manifest.graphs[graph]
    engine = check_engine(bundle.manifest.target)
    kind = bundle.manifest.kind(graph)
    if kind not in engine.kinds:
        what = f"the engine of {bundle.manifest.target} opens no graphs of the kind {kind!r}"
        raise BundleError(what, where=where, fix=f"it opens {', '.join(sorted(engine.kinds))}: build the bundle again")
    bundle.check_unchanged()
    key = (engine, threads, *_content(bundle, graph))
    try:
        return OPEN.get(key) or OPEN.setdefault(key, engine.open(bundle, graph, threads))
    except BundleError:
        raise
    except Exception as error:  # the errors of engines have no class in common
        raise BundleError(f"{where} cannot be loaded: {reason(error)}", where=where, fix="build it again") from error


def _content(bundle: Bundle, graph: str) -> list[str]:
    """List all of a bundle that decides a session of a graph: digests of files, what the manifest states, and ports."""
    manifest = bundle.manifest
    read = external_files(bundle.graph(graph)) if manifest.kind(graph) == ONNX else set(manifest.files)
    engine = manifest.raw.get("engines", {}).get(graph, {})
    files = [manifest.graphs[graph], *sorted(read), *([engine["file"]] if engine else [])]
    stated = [{key: entry[key] for key in entry.keys() - {"file"}} for entry in (manifest.raw["graphs"][graph], engine)]
    called = {str(each) for program in bundle.programs.values() for each in program.graphs if each.name == graph}
    digests = [manifest.files[file].sha256 for file in files]
    return [manifest.target, *digests, json.dumps(stated, sort_keys=True), *sorted(called)]


def check_engine(target: str) -> type[Engine]:
    """Return the engine that runs a target. Raises `BundleError` where there is none, or it is not installed."""
    name, precision = split_target(target)
    engine = find_engine(name)
    engine.check(precision)
    return engine


def find_engine(name: str) -> type[Engine]:
    """Import the class that is registered under this name in the entry-point group ``diffc.engines``.

    Raises `BundleError` where there is none, where there are two, or where it cannot be imported.
    """
    point = find_entry_point(GROUP, name, "engine", BundleError)
    try:
        engine: type[Engine] = point.load()
    except (ImportError, AttributeError) as error:
        fix = "install the package that it needs, or build for a target ort-…"
        raise BundleError(f"engine {name!r} cannot be imported: {error}", where=point.value, fix=fix) from error
    return engine


def split_target(target: str) -> tuple[str, str]:
    """Return the back end and the precision of a target.

    >>> split_target("trt-w4a8@sm86,sm89")
    ('trt', 'w4a8')
    """
    backend, _, precision = target.partition("@")[0].partition("-")
    return backend, precision
