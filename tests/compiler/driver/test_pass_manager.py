"""A recipe runs in order, verified after every pass; an error says where in the recipe it happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from diffc.compiler.driver.pass_manager import PROGRAMS, Subject, Times, run, run_recipe
from diffc.compiler.errors import PassError, VerifyError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program
from diffc.compiler.recipe import optional
from diffc.runtime.program.verify import Level

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
    run(PROGRAM, [rename, partial(rename, to="b")], seen=lambda name, program, _: seen.append((name, program.name)))
    assert seen == [("rename", "main_other"), ("rename", "main_other_b")]


def test_the_program_is_verified_before_the_first_pass() -> None:
    with pytest.raises(VerifyError, match="the program returns nothing") as caught:
        run(forget(PROGRAM), [rename])
    assert caught.value.inside is None


def test_a_pass_that_breaks_a_rule_is_named() -> None:
    seen = []
    with pytest.raises(VerifyError, match="the program returns nothing") as caught:
        run(PROGRAM, [rename, forget, rename], seen=lambda name, *_: seen.append(name))
    assert caught.value.inside == "forget, after rename"
    assert seen == ["rename"]


def test_a_refusal_is_named_with_the_passes_before_it() -> None:
    with pytest.raises(PassError) as caught:
        run(PROGRAM, [rename, partial(rename, to="b"), refuse])
    assert str(caught.value) == "refuse: no\n  fix: leave it out\n  in:  refuse, after rename, rename"
    with pytest.raises(PassError) as caught:
        run(PROGRAM, [refuse])
    assert caught.value.inside == "refuse, after no other pass"


def keep(program: Program, *, tidy: bool = False) -> Program:
    """Change nothing."""
    return replace(program)


def test_a_pass_that_changes_nothing_is_refused_unless_it_is_optional() -> None:
    for idle in (keep, partial(keep, tidy=True)):
        with pytest.raises(PassError) as caught:
            run(PROGRAM, [rename, idle])
        assert str(caught.value) == (
            "keep changes nothing\n  fix: leave it out, or mark it optional: keep?\n  in:  keep, after rename"
        )
        assert run(PROGRAM, [rename, optional(idle)]) == rename(PROGRAM)


def test_the_subject_may_know_why_a_pass_changes_nothing() -> None:
    words = Subject[tuple[str, ...]](lambda words: words, reasons=lambda words, name: f"{name} of {words}")

    def shout(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(str.upper, words))

    assert run_recipe(("a",), [shout], words) == ("A",)
    with pytest.raises(PassError, match="shout changes nothing") as caught:
        run_recipe(("A",), [shout], words)
    assert caught.value.where == "shout of ('A',)"


def test_the_programs_of_a_bundle_are_verified_together() -> None:
    def second(programs: tuple[Program, ...], change: Callable[[Program], Program]) -> tuple[Program, ...]:
        return programs[0], change(programs[1])

    both = (PROGRAM, replace(PROGRAM, name="b"))
    names = list[str]()
    found = run_recipe(both, [partial(second, change=rename)], PROGRAMS, progress=names.append)
    assert (names, [program.name for program in found]) == (["second"], ["main", "b_other"])
    with pytest.raises(VerifyError, match="the program returns nothing"):
        run_recipe(both, [partial(second, change=forget)], PROGRAMS)
    with pytest.raises(PassError, match="second changes nothing"):
        run_recipe(both, [partial(second, change=keep)], PROGRAMS)


def test_the_time_of_a_pass_is_shown() -> None:
    seconds = list[float]()

    def slow(program: Program) -> Program:
        time.sleep(0.02)
        return rename(program)

    run(PROGRAM, [slow], seen=lambda _, __, taken: seconds.append(taken))
    assert 0.02 <= seconds[0] < 2


def test_times_of_one_pass_add_up() -> None:
    times = Times()
    run_recipe((PROGRAM,), [optional(lambda programs: programs)] * 2, PROGRAMS, seen=times)
    assert list(times) == ["<lambda>"] and times["<lambda>"] > 0
    times("<lambda>", PROGRAM, 5.0)
    assert times["<lambda>"] > 5


def test_the_result_of_a_recipe_meets_the_rules_of_its_level() -> None:
    program = parse("program p() { n: float32[2] = noise() x: float32[2] = aten.abs.default(n) return x }")
    assert run(program, []) is program
    with pytest.raises(VerifyError, match="aten.abs.default is an operator of ATen"):
        run(program, [], level=Level.NORMAL_FORM)
