"""Define the state that the phases of a build hand on, and run phases: verified, timed, shown, and named in errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffc.compiler.analysis.work import Work
from diffc.compiler.backends.backend import BuiltEngine
from diffc.compiler.calibration.calibrate import Calibrator
from diffc.compiler.driver.options import Options
from diffc.compiler.errors import DiffcError, Progress
from diffc.compiler.ir.program import Program
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.recipe import name_of
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.runtime.program.verify import Level, verify


@dataclass(frozen=True)
class State:
    """Hold the results of a build after a phase.

    ``traced`` are programs whose components are opaque calls, ``programs`` those with graphs, and ``finer`` the first
    program with twice as many steps, where a cache compares with it. ``level`` is the one at which ``programs`` are
    verified after each phase from now on. ``floats`` are the programs before quantization, with the same names.
    ``files`` and ``engines`` map graphs to their files and engines, ``seconds`` each phase that ran to its time, and
    ``PHASE: PASS`` each of its passes; ``pass_seconds`` are those of the passes of one phase.
    ``seen`` is called with each program after a phase or pass, and the ``place`` of either.
    """

    options: Options
    folder: Path
    source: Path = Path()
    progress: Progress = lambda _: None
    seen: Callable[[str, Program], None] = lambda *_: None
    place: str = ""
    components: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Any = None
    calls: ComponentCalls = field(default_factory=ComponentCalls)
    traced: tuple[Program, ...] = ()
    finer: tuple[Program, ...] = ()
    programs: tuple[Program, ...] = ()
    level: Level = Level.TRACED
    floats: tuple[Program, ...] = ()
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    calibrator: Calibrator = field(default_factory=Calibrator)
    work: Work = field(default_factory=lambda: Work({}, {}))
    plan: Plan | None = None
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    engines: Mapping[str, BuiltEngine] = field(default_factory=dict)
    extras: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    reports: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    pass_seconds: Mapping[str, float] = field(default_factory=dict)


Phase = Callable[[State], State]


def run_phases(state: State, phases: Iterable[Phase]) -> State:
    """Run phases in order, and verify the programs that each of them changed. An error names its phase."""
    for number, phase in enumerate(phases, 1):
        name, begin, before = name_of(phase), time.perf_counter(), state.programs
        state.progress(name)
        try:
            state = phase(replace(state, place=f"{number:02}-{name}", pass_seconds={}))
            for program in () if state.programs is before else state.programs:
                verify(program, state.level)
        except DiffcError as error:
            error.inside = f"phase {name}" + (f": {error.inside}" if error.inside else "")
            raise
        passes = {f"{name}: {each}": seconds for each, seconds in state.pass_seconds.items()}
        state = replace(state, seconds={**state.seconds, name: time.perf_counter() - begin, **passes})
        for program in state.programs or state.traced:
            state.seen(state.place, program)
    return state
