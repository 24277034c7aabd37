"""Open a graph with the engine that is registered for the bundle's target."""

from __future__ import annotations

from diffc.runtime.bundle.open import Bundle
from diffc.runtime.engines.session import Engine, Session, reason
from diffc.runtime.entry_points import find_entry_point
from diffc.runtime.errors import BundleError

GROUP = "diffc.engines"


def open_graph(bundle: Bundle, graph: str, threads: int) -> Session:
    """Open a graph with the engine of the bundle's target. Raises `BundleError` where it cannot."""
    where = bundle.manifest.graphs[graph]
    engine = check_engine(bundle.manifest.target)
    kind = bundle.manifest.kind(graph)
    if kind not in engine.kinds:
        what = f"the engine of {bundle.manifest.target} opens no graphs of the kind {kind!r}"
        raise BundleError(what, where=where, fix=f"it opens {', '.join(sorted(engine.kinds))}: build the bundle again")
    try:
        return engine.open(bundle, graph, threads)
    except BundleError:
        raise
    except Exception as error:  # the errors of engines have no class in common
        raise BundleError(f"{where} cannot be loaded: {reason(error)}", where=where, fix="build it again") from error


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
