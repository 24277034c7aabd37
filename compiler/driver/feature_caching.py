"""Run the phase in which steps reuse features of earlier ones, the last that rewrites programs in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from diffc.compiler.calibration.calibrate import Calibrate
from diffc.compiler.driver.options import CACHE, CacheOptions
from diffc.compiler.driver.pass_manager import PROGRAMS, Times, run_recipe
from diffc.compiler.driver.state import State
from diffc.compiler.errors import DiffcError, Progress
from diffc.compiler.ir.program import Program, require_fixed_sizes
from diffc.compiler.recipe import optional
from diffc.passes.cache import Need
from diffc.passes.cache.auto.search import Searched


def cache(state: State, *, options: CacheOptions) -> State:
    """Rewrite all programs so that most steps reuse features of earlier ones."""
    require_fixed_sizes((graph for program in state.programs for graph in program.graphs), "feature caches")
    finer, times = next(iter(state.finer), None), Times()
    programs, reports = apply_cache(state.programs, options, state.calibrator, state.progress, finer, times)
    reports = {**state.reports, **reports}
    return replace(state, programs=programs, floats=programs, reports=reports, pass_seconds=times)


def apply_cache(
    programs: Sequence[Program],
    options: CacheOptions,
    calibrate: Calibrate,
    progress: Progress,
    finer: Program | None = None,
    seen: Callable[[str, tuple[Program, ...], float], None] = lambda *_: None,
) -> tuple[tuple[Program, ...], dict[str, Any]]:
    """Return the programs with a feature cache, and the report of one that searched. Raises `PassError`."""
    technique, reports = options.technique, dict[str, Any]()
    supplies = {Need.CALIBRATOR: calibrate, Need.FINER_PROGRAM: finer}

    @wraps(technique.apply)
    def apply(programs: tuple[Program, ...]) -> tuple[Program, ...]:
        result = technique.apply(programs, *(supplies[need] for need in technique.needs), **options.options)
        if isinstance(result, Searched):
            reports["cache"] = result.described
            return result.programs
        return tuple(result)

    recipe = [optional(apply) if options.may_change_nothing else apply]
    try:
        cached = run_recipe(
            tuple(programs), recipe, PROGRAMS, progress=lambda _: progress(f"cache: {technique.name}"), seen=seen
        )
    except DiffcError as error:
        error.inside = f"{CACHE} {technique.name}"
        raise
    return cached, reports
