"""Phases are run in order, verified, timed, shown, and named in errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffc.compiler.driver.options import read_options
from diffc.compiler.driver.state import State, run_phases
from diffc.compiler.errors import PassError, VerifyError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program

PROGRAM = parse("program main() { n: float32[2] = noise() return n }")


def state(tmp_path: Path, **fields: Any) -> State:
    """Make a state with one program."""
    return State(read_options("ort-fp32"), tmp_path, programs=(PROGRAM,), **fields)


def rename(state: State, *, to: str = "renamed") -> State:
    """Rename all programs."""
    return replace(state, programs=tuple(replace(program, name=to) for program in state.programs))


def forget(state: State) -> State:
    """Break a rule of programs."""
    return replace(state, programs=tuple(replace(program, outputs=()) for program in state.programs))


def refuse(state: State) -> State:
    """Refuse as a pass inside of the phase does."""
    error = PassError("no")
    error.inside = "fold, after no other pass"
    raise error


def test_phases_are_timed_and_reported_in_order(tmp_path: Path) -> None:
    lines, seen = list[str](), list[tuple[str, str]]()

    def show(place: str, program: Program) -> None:
        seen.append((place, program.name))

    after = run_phases(state(tmp_path, progress=lines.append, seen=show), [rename, stay])
    assert lines == ["rename", "stay"] == list(after.seconds) and min(after.seconds.values()) >= 0
    assert seen == [("01-rename", "renamed"), ("02-stay", "renamed")]


def stay(state: State) -> State:
    """Change nothing."""
    return state


def test_passes_are_timed_beside_their_phase(tmp_path: Path) -> None:
    def quantize(state: State) -> State:
        return replace(state, pass_seconds={"gptq": 2.0})

    after = run_phases(state(tmp_path), [quantize, stay])
    assert list(after.seconds) == ["quantize", "quantize: gptq", "stay"] and after.seconds["quantize: gptq"] == 2.0


def test_an_error_names_its_phase(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="the program returns nothing") as broken:
        run_phases(state(tmp_path), [rename, forget, refuse])
    assert broken.value.inside == "phase forget"
    with pytest.raises(PassError) as refused:
        run_phases(state(tmp_path), [refuse])
    assert str(refused.value) == "no\n  in:  phase refuse: fold, after no other pass"
