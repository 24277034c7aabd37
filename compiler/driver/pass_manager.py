"""Run a recipe, a list of passes, over a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diffc.compiler.errors import DiffcError
from diffc.compiler.ir.program import Program
from diffc.compiler.ir.verify import verify

Pass = Callable[[Program], Program]


def run(program: Program, recipe: Sequence[Pass], *, seen: Callable[[str, Program], None] = lambda *_: None) -> Program:
    """Apply the passes in order and verify after each; ``seen`` is shown every pass's name and result.

    An error names the pass that it came from and those before it.
    """
    done: list[str] = []
    verify(program)
    for step in recipe:
        name = getattr(step, "__name__", None) or step.func.__name__  # type: ignore[attr-defined]
        try:
            program = verify(step(program))
        except DiffcError as error:
            error.inside = f"{name}, after {', '.join(done) or 'no other pass'}"
            raise
        seen(name, program)
        done.append(name)
    return program
