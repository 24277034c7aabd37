"""Equal operations become one, and nothing else does; the numbers stay."""

from __future__ import annotations

from hypothesis import given, settings

from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program
from diffc.passes.common_subexpressions import common_subexpressions
from diffc.runtime.program.verify import verify
from tests.random_programs import difference, draws, numbers, rewritten_alike, straight_lines


def lines(operations: str) -> list[str]:
    """Rewrite a program of float32[2] values, check its numbers, and give its lines."""
    typed = operations.replace(" =", ": float32[2] =")
    before = verify(parse(f"program main(g: scalar = 2.0) {{ {typed} }}"))
    after = verify(common_subexpressions(before))
    noises = draws(before)
    assert difference(numbers(after, noises), numbers(before, noises)) == 0.0
    return [line.strip().replace(": float32[2]", "") for line in str(after).splitlines()[1:-1]]


def test_what_follows_from_equal_values_is_equal() -> None:
    assert lines("""
        n = noise()
        a = linear(n; 2.0)
        b = linear(a; g)
        c = linear(n; 2.0)
        d = linear(c; g)
        e = linear(b, d; 1.0, 1.0)
        return e
    """) == ["n = noise()", "a = linear(n; 2.0)", "b = linear(a; 1.0*g)", "e = linear(b, b; 1.0, 1.0)", "return e"]


def test_an_output_takes_the_name_of_the_first() -> None:
    kept = lines("n = noise() a = linear(n; 2.0) b = linear(n; 2.0) return b")
    assert kept == ["n = noise()", "a = linear(n; 2.0)", "return a"]


def test_draws_and_steps_stay_apart() -> None:
    text = "n = noise() m = noise() step(n; 1.0) step(n; 1.0) y = linear(n, m; 1.0, 1.0) return y"
    assert [line.split("(")[0] for line in lines(text)[:-2]] == ["n = noise", "m = noise", "step", "step"]


def test_other_types_and_coefficients_stay_apart() -> None:
    program = parse("""program p() {
        n: float32[2] = noise()
        a: float32[2] = linear(n; 2.0)
        b: float16[2] = linear(n; 2.0)
        c: float32[2] = linear(n; 3.0)
        d: float32[2] = linear(a, b, c; 1.0, 1.0, 1.0)
        return d
    }""")
    assert common_subexpressions(program) == program


@settings(max_examples=60, deadline=None)
@given(straight_lines())
def test_random_programs_keep_their_numbers(program: Program) -> None:
    assert rewritten_alike(program, verify(common_subexpressions(program))) == 0.0
