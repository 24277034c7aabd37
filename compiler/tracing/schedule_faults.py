"""Find a schedule that leaves no step or has values that are not finite, and the settings with which it works.

A pipeline fails far from the cause, or returns a black image. So what would work is found by trying: each setting of
the scheduler that is not its default, one step more, and a strength that leaves a step.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from diffc.compiler.errors import BuildError, CaptureError, DiffcError
from diffc.compiler.graph.aten import Trait, has
from diffc.compiler.ir.program import Literal, Op, Program, Ref, Table

Trial = tuple[str, Callable[[], object]]
"""A setting, as a user would write it, and a function that raises `DiffcError` where a trace with it fails."""


class NotFiniteError(CaptureError):
    """Refuse a program with a constant that is no finite number."""


def check_finite(program: Program) -> None:
    """Raise `NotFiniteError` for the first operation that computes with NaN, with infinity, or divides by zero."""
    step, tables = 1, {table.name: table for table in program.tables}
    for op in program.ops:
        if fault := _fault(op, tables):
            fix = "choose settings of the scheduler whose values are finite"
            raise NotFiniteError(f"step {step} {fault}", where=str(op), fix=fix)
        step += op.operator == "step"


def _fault(op: Op, tables: Mapping[str, Table]) -> str | None:
    divides = op.operator.startswith("aten.div.")
    if divides and len(op.args) > 1 and op.args[1] == 0:
        return "divides by zero"
    values = [*_numbers(op.args, tables), *_numbers(tuple(value for _, value in op.attrs), tables)]
    values += [np.float64(factor) for polynomial in op.coefficients for _, factor in polynomial.terms]
    if any(np.isnan(value).any() for value in values):
        return "computes with NaN"
    computes = not op.operator.startswith("aten.") or has(op.operator, Trait.LINEAR | Trait.BILINEAR)
    return "computes with infinity" if computes and any(np.isinf(value).any() for value in values) else None


def _numbers(literal: Literal, tables: Mapping[str, Table]) -> Iterator[Any]:
    """Yield the numbers of a literal and of the tables that it names."""
    if isinstance(literal, tuple):
        for entry in literal:
            yield from _numbers(entry, tables)
    elif isinstance(literal, Ref):
        data = tables[literal.name].data if literal.name in tables else None
        if data is not None and data.dtype.kind == "f":
            yield data
    elif isinstance(literal, float):
        yield np.float64(literal)


def explained(
    error: CaptureError, pipeline: Any, steps: int, strength: float | None, trial: Callable[..., Callable[[], object]]
) -> DiffcError:
    """Return the error that names the cause where it is the schedule, and the same error otherwise.

    ``trial(scheduler=, steps=, strength=)`` returns a function that traces with these instead.
    """
    if strength is not None and (least := _least_strength(strength, steps, trial)):
        more = f", or --steps {math.ceil(1 / strength)} or more" if strength > 0 else ""
        what = f"a strength of {strength:g} leaves no step of {steps}"
        where = f"{type(pipeline).__name__} with {type(pipeline.scheduler).__name__}"
        return BuildError(what, where=where, fix=f"use --strength {least:g} or more{more}")
    scheduler = pipeline.scheduler
    if not isinstance(error, NotFiniteError) and not _arises_in(error, type(scheduler)):
        return error
    changed = _changed_settings(scheduler)
    trials: list[Trial] = [(f"--steps {steps + 1}", trial(steps=steps + 1))]
    for name, default in changed.items():
        changed_scheduler = type(scheduler).from_config(scheduler.config, **{name: default})
        trials.append((f"{name}={default!r}", trial(scheduler=changed_scheduler)))
    working = [setting for setting, run in trials if _works(run)]
    settings = ", ".join(f"{name}={scheduler.config[name]!r}" for name in changed) or "its default settings"
    what = f"{type(scheduler).__name__} cannot make {steps} step{'s' * (steps != 1)}: {error.what}"
    fix = (
        f"it works with {' or '.join(working)}; or choose another --sampler" if working else "choose another --sampler"
    )
    return BuildError(what, where=f"{settings}; {error.where}", fix=fix)


def _least_strength(strength: float, steps: int, trial: Callable[..., Callable[[], object]]) -> float | None:
    """Return the least strength above one that fails that leaves a step and works; None where none does."""
    candidates = [at / steps for at in (1, 2, steps) if strength < at / steps <= 1] if strength * steps < 1 else []
    return next((candidate for candidate in candidates if _works(trial(strength=candidate))), None)


def _works(run: Callable[[], object]) -> bool:
    try:
        run()
    except DiffcError:
        return False
    return True


def _arises_in(error: CaptureError, scheduler: type) -> bool:
    """Return whether a failure of the pipeline arises in the code of its scheduler."""
    cause = error.__cause__
    files = {frame.filename for frame in traceback.extract_tb(cause.__traceback__)} if cause else set()
    return inspect.getfile(scheduler) in files


def _changed_settings(scheduler: Any) -> dict[str, Any]:
    """Map the settings of a scheduler that differ from their defaults to the defaults."""
    parameters = inspect.signature(type(scheduler).__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    config = scheduler.config
    return {name: default for name, default in defaults.items() if name in config and config[name] != default}
