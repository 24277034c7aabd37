"""A recipe runs in order, verified after every pass; an error says where in the recipe it happened."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from diffc.compiler.driver.pass_manager import run
from diffc.compiler.errors import PassError, VerifyError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program

PROGRAM = parse("program main() { n: float32[2] = noise() return n }")


def rename(program: Program, *, to: str = "other") -> Program:
    """Change the name."""
    return replace(program, name=f"{program.name}_{to}")


def forget(program: Program) -> Program:
    """Break a rule."""
    return replace(program, outputs=())


def refuse(program: Program) -> Program:
    """Refuse."""
    raise PassError("refuse: no", fix="leave it out")


def test_passes_run_in_order() -> None:
    assert run(PROGRAM, [partial(rename, to="a"), rename]).name == "main_a_other"


def test_an_empty_recipe_changes_nothing() -> None:
    assert run(PROGRAM, []) == PROGRAM


def test_every_result_is_shown() -> None:
    seen = []
    run(PROGRAM, [rename, partial(rename, to="b")], seen=lambda name, program: seen.append((name, program.name)))
    assert seen == [("rename", "main_other"), ("rename", "main_other_b")]


def test_the_program_is_verified_before_the_first_pass() -> None:
    with pytest.raises(VerifyError, match="the program returns nothing") as caught:
        run(forget(PROGRAM), [rename])
    assert caught.value.inside is None


def test_a_pass_that_breaks_a_rule_is_named() -> None:
    seen = []
    with pytest.raises(VerifyError, match="the program returns nothing") as caught:
        run(PROGRAM, [rename, forget, rename], seen=lambda name, _: seen.append(name))
    assert caught.value.inside == "forget, after rename"
    assert seen == ["rename"]


def test_a_refusal_is_named_with_the_passes_before_it() -> None:
    with pytest.raises(PassError) as caught:
        run(PROGRAM, [rename, partial(rename, to="b"), refuse])
    assert str(caught.value) == "refuse: no\n  fix: leave it out\n  in:  refuse, after rename, rename"
    with pytest.raises(PassError) as caught:
        run(PROGRAM, [refuse])
    assert caught.value.inside == "refuse, after no other pass"
