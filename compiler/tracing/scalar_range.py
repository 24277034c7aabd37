"""Find the range of a scalar over which a program is a polynomial in it, by tracing at more of its values.

Constants that are equal at one value and at values near it say nothing of a clamp, a table or a rounding that sets in
further away. So the polynomials are fitted to values far apart and checked at others: both signs, zero, large values,
and what lies next to each guard. Where one is missed, they are fitted near the default, and the program is guarded by
the interval over which further traces agree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Guard, Op, Table
from diffc.compiler.tracing.symbolic_scalar import COMPARISONS, fit_polynomials

LARGEST = 1e6 + 0.37
"""The scalars of a request that are traced lie between this and its negative."""

CHECKS = (0.0, 30.71, -30.71)
"""Values between those to which polynomials are fitted, to check them at."""

CHECKED = 2
"""How many values the polynomials of a whole range are checked at."""

BISECTIONS = 5
"""How often the end of a range is bisected."""

NEAR = (0.484375, 1.03125, 2.015625, -0.265625, -0.515625, -0.765625)
"""Distances from the default of the values that polynomials are fitted to near it: float32 holds them exactly."""

STEP = 0.5123
"""The first distance of values that are not multiples of one another, as those of tables and roundings are."""

MOST_EDGES = 8
"""A scalar that is compared with more numbers than these is fixed."""


class Traced(NamedTuple):
    """Hold operations and tables of a trace, and how far constants are from those that they are compared with."""

    ops: Sequence[Op]
    tables: Mapping[str, Table]
    compared: Sequence[Sequence[float]] = ()


class Fitted(NamedTuple):
    """Hold operations and tables that depend on a scalar, and the guards that its range needs."""

    ops: list[Op]
    tables: dict[str, Table]
    guards: list[Guard]


def fit_over_range(
    scalar: str, at: float, first: Traced, guards: Sequence[Guard], trace: Callable[[float], Traced]
) -> Fitted | None:
    """Return the polynomials in a scalar, with the guards of the range for which they hold; None where none fit.

    ``first`` is the trace at the default and ``guards`` are its guards; ``trace`` repeats it at another value.
    """
    traces: dict[float, Traced | None] = {at: first}

    def fitted(points: Sequence[float]) -> tuple[list[Op], dict[str, Table]] | None:
        for point in points:
            if point not in traces:
                traces[point] = _traced(trace, point)
        runs = [run for run in map(traces.get, points) if run is not None]
        if len(runs) < len(points):
            return None
        return fit_polynomials(scalar, points, runs[0].ops, [run.tables for run in runs], [run.ops for run in runs[1:]])

    own = [guard for guard in guards if guard.scalar == scalar]
    far = [at, *_far(at, own)]
    fit = fitted(far)
    edges = _edges({point: traced for point in far if (traced := traces.get(point)) is not None})
    if edges is None:
        return None
    beside = _admitted([*edges, *_beside(edges)], own)
    if fit is not None and (not beside or (fit := fitted([*far, *beside])) is not None):
        return Fitted(*fit, [])
    near = [at, *_admitted((at + distance for distance in NEAR), own)[:3]]
    fit = fitted(near)
    if fit is None:
        return None
    ends = (_end(_walk(at, sign, own, edges), at, lambda point: fitted([*near, point]) is not None) for sign in (-1, 1))
    bounds = [Guard(scalar, sign, end) for sign, end in zip((">=", "<="), ends, strict=True) if end is not None]
    return None if all(guard.bound == at for guard in bounds) and bounds else Fitted(*fit, bounds)


def _far(at: float, guards: Sequence[Guard]) -> list[float]:
    """Choose values far apart at which the guards hold: two to fit to, then those to check at."""
    ends = _admitted([LARGEST, -LARGEST, *_beside(_bounds(guards)), 0.0], guards)[:2]
    checks = [at + STEP, *_beside(_bounds(guards)), *CHECKS, at - STEP / 2]
    return [*ends, *[point for point in _admitted(checks, guards) if point not in ends][:CHECKED]]


def _edges(traces: Mapping[float, Traced]) -> list[float] | None:
    """List the values of a scalar at which constants equal those that they are compared with, by traces at some values.

    Returns None where they are no linear function of it, or there are too many.
    """
    (at, first), *repeated = traces.items()
    crossings = dict[int, list[float]]()
    for point, traced in repeated:
        pairs = zip(itertools.chain(*first.compared), itertools.chain(*traced.compared), strict=False)
        for index, (distance, farther) in enumerate(pairs):
            if distance != farther and math.isfinite(farther - distance):
                crossing = at - distance * (point - at) / (farther - distance)
                crossings.setdefault(index, []).append(round(crossing, 4))
    if any(max(values) - min(values) > 1e-3 * max(1.0, abs(values[0])) for values in crossings.values()):
        return None
    edges = {values[-1] for values in crossings.values() if abs(values[-1]) <= LARGEST}
    return sorted(edges) if len(edges) <= MOST_EDGES else None


def _walk(at: float, sign: int, guards: Sequence[Guard], edges: Sequence[float]) -> list[float]:
    """List values further and further from one at which the guards hold, up to their bounds or the largest value."""
    doubled = [at + sign * STEP * 2**doublings for doublings in range(21)]
    points = [*doubled, *edges, *_beside([*_bounds(guards), *edges]), *CHECKS, sign * LARGEST]
    return sorted((p for p in _admitted(points, guards) if sign * (p - at) > 0), key=lambda point: sign * point)


def _end(points: Sequence[float], at: float, holds: Callable[[float], bool]) -> float | None:
    """Return the last of the values up to which all hold, bisected towards the next; None where all do."""
    for before, point in pairwise([at, *points]):
        if not holds(point):
            for _ in range(BISECTIONS):
                middle = (before + point) / 2
                before, point = (middle, point) if holds(middle) else (before, middle)
            return before
    return None


def _bounds(guards: Sequence[Guard]) -> list[float]:
    return [guard.bound for guard in guards]


def _beside(edges: Sequence[float]) -> list[float]:
    """List the values next to others."""
    return [edge + sign * 1e-3 * max(1.0, abs(edge)) for edge in edges for sign in (-1, 1)]


def _admitted(points: Iterable[float], guards: Sequence[Guard]) -> list[float]:
    """List the values at which the guards hold."""
    return [p for p in points if abs(p) <= LARGEST and all(COMPARISONS[g.comparison](p, g.bound) for g in guards)]


def _traced(trace: Callable[[float], Traced], point: float) -> Traced | None:
    """Trace at a value; None where the function refuses it."""
    try:
        return trace(point)
    except CaptureError:
        return None
