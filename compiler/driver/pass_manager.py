"""Run a recipe over its subject: a program, the programs of a bundle, or the plan of their quantization."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from diffc.compiler.errors import DiffcError, PassError, Progress
from diffc.compiler.ir.program import Program
from diffc.compiler.recipe import Optional, Pass, is_unchanged, name_of
from diffc.runtime.program.verify import Level, verify

T = TypeVar("T")


@dataclass(frozen=True)
class Subject(Generic[T]):
    """Hold the checks of one kind of subject that passes rewrite.

    ``verify`` returns it or raises `DiffcError`, ``is_same`` compares it before and after a pass, and ``reasons``
    returns why the named pass left a subject alone, if that is known.
    """

    verify: Callable[[T], T]
    is_same: Callable[[T, T], bool] = is_unchanged
    reasons: Callable[[T, str], str] = lambda _, __: ""


class Times(dict[str, float]):
    """Sum the seconds of passes by their names: the ``seen`` of `run_recipe`."""

    def __call__(self, name: str, _subject: object, seconds: float) -> None:
        """Add the seconds of a pass."""
        self[name] = self.get(name, 0.0) + seconds


PROGRAM = Subject[Program](verify)
PROGRAMS = Subject[tuple[Program, ...]](
    lambda programs: tuple(verify(program, Level.EXECUTABLE) for program in programs)
)


def run(
    program: Program,
    recipe: Sequence[Pass[Program]],
    *,
    level: Level = Level.TRACED,
    seen: Callable[[str, Program, float], None] = lambda *_: None,
) -> Program:
    """Run a recipe over one program, as `run_recipe` does; the result meets the rules of ``level``."""
    return verify(run_recipe(program, recipe, PROGRAM, seen=seen), level)


def run_recipe(
    subject: T,
    recipe: Sequence[Pass[T]],
    kind: Subject[T],
    *,
    progress: Progress = lambda _: None,
    seen: Callable[[str, T, float], None] = lambda *_: None,
) -> T:
    """Run the passes in order and verify the result of each.

    ``progress`` is called with the name of each pass before it runs, ``seen`` with its name, result and seconds after.
    Raises `PassError` for a pass that changes nothing and is not optional. An error names the pass that it came from
    and those before it.
    """
    done: list[str] = []
    kind.verify(subject)
    for rewrite in recipe:
        name, begin = name_of(rewrite), time.perf_counter()
        progress(name)
        try:
            result = kind.verify(rewrite(subject))
            if not isinstance(rewrite, Optional) and kind.is_same(subject, result):
                fix = f"leave it out, or mark it optional: {name}?"
                raise PassError(f"{name} changes nothing", where=kind.reasons(result, name) or None, fix=fix)
        except DiffcError as error:
            error.inside = f"{name}, after {', '.join(done) or 'no other pass'}"
            raise
        subject = result
        seen(name, subject, time.perf_counter() - begin)
        done.append(name)
    return subject
