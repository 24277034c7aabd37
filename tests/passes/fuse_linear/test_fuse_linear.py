"""Between two calls, the arithmetic of any sampler becomes one linear."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from diffc.compiler.driver.pass_manager import run
from diffc.compiler.errors import VerifyError
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program
from diffc.passes.fuse_linear import fuse_linear
from diffc.runtime.program.verify import verify
from tests.random_programs import difference, draws, numbers, rewritten_alike, straight_lines
from tests.tolerances import REWRITE, REWRITE_SINGLE

# Rewrites

HEAD = """
program main(g: scalar = 2.0) {
    graph unet(sample: float32[2, 3]) -> (out: float32[2, 3])
    graph wide(sample: float32[4, 3]) -> (out: float32[4, 3])
    table half: float32[1]
    table many: float32[3]
"""


def rewritten(operations: str) -> list[str]:
    """Unroll a program of these operations (float32[2, 3] unless they say otherwise) and give its lines."""
    typed = re.sub(r"^( *\w+) =", r"\1: float32[2, 3] =", operations, flags=re.M)
    program = verify(fuse_linear(verify(parse(f"{HEAD}{typed}}}"))))
    lines = [line.strip() for line in str(program).replace(": float32[2, 3]", "").splitlines()]
    return [line for line in lines if line.split()[0] not in ("program", "graph", "table", "}")]


def with_table(data: torch.Tensor) -> Program:
    """Give a program that multiplies noise by a table."""
    shape = list(data.shape)
    program = parse(
        f"program main() {{ table t: float32{shape} n: float32[2, 3] = noise()"
        "y: float32[2, 3] = aten.mul.Tensor(n, t) z: float32[2, 3] = aten.add.Tensor(y, t) return z }"
    )
    return replace(program, tables=(replace(program.tables[0], data=data.numpy()),))


def test_scales_the_input_of_each_call_but_keeps_one_linear_for_each_step() -> None:
    """Euler with ``scale_model_input`` and guidance: the concatenation is of two scaled latents."""
    assert rewritten("""
        n = noise()
        x = aten.mul.Tensor(n, 8.0)
        both: float32[4, 3] = aten.cat.default([x, x])
        scaled: float32[4, 3] = aten.div.Tensor(both, 4.0)
        y: float32[4, 3] = wide(sample=scaled)
        u: float32[2, 3], c: float32[2, 3] = aten.split.Tensor(y, 2)
        k: float32[] = linear(; 1.0*g)
        d = aten.sub.Tensor(c, u)
        e = aten.mul.Tensor(k, d)
        f = aten.add.Tensor(u, e)
        m = aten.mul.Tensor(f, -2.0)
        z = aten.add.Tensor(x, m)
        step(z; 1.0)
        both2: float32[4, 3] = aten.cat.default([z, z])
        scaled2: float32[4, 3] = aten.div.Tensor(both2, 2.0)
        y2: float32[4, 3] = wide(sample=scaled2)
        u2: float32[2, 3], c2: float32[2, 3] = aten.split.Tensor(y2, 2)
        w = aten.sub.Tensor(z, c2)
        return w
    """) == [
        "n = noise()",
        "x0 = linear(n; 2.0)",
        "scaled: float32[4, 3] = concat(x0, x0, axis=0)",
        "y: float32[4, 3] = wide(sample=scaled)",
        "u, c = split(y, axis=0)",
        "x1 = linear(x0, u, c; 2.0, -1.0 + 1.0*g, -1.0*g)",
        "scaled2: float32[4, 3] = concat(x1, x1, axis=0)",
        "step(x1; 2.0)",
        "y2: float32[4, 3] = wide(sample=scaled2)",
        "u2, c2 = split(y2, axis=0)",
        "x2 = linear(x1, c2; 2.0, -1.0)",
        "return x2",
    ]


def test_a_multistep_solver_is_just_more_terms() -> None:
    """DPM++ 2M: each step reads the last two predictions of the picture, x - s·y."""
    assert rewritten("""
        n = noise()
        y0 = unet(sample=n)
        a0 = aten.mul.Tensor(y0, 8.0)
        p0 = aten.sub.Tensor(n, a0)
        b0 = aten.mul.Tensor(n, 0.5)
        c0 = aten.mul.Tensor(p0, 0.5)
        x1 = aten.add.Tensor(b0, c0)
        y1 = unet(sample=x1)
        a1 = aten.mul.Tensor(y1, 4.0)
        p1 = aten.sub.Tensor(x1, a1)
        d1 = aten.sub.Tensor(p1, p0)
        b1 = aten.mul.Tensor(x1, 0.25)
        e1 = aten.mul.Tensor(p1, 0.75)
        f1 = aten.add.Tensor(b1, e1)
        x2 = aten.add.Tensor(f1, d1, alpha=0.5)
        y2 = unet(sample=x2)
        return y2
    """) == [
        "n = noise()",
        "y0 = unet(sample=n)",
        "x0 = linear(n, y0; 1.0, -4.0)",
        "y1 = unet(sample=x0)",
        "x1 = linear(x0, y1, y0; 1.0, -5.0, 2.0)",
        "y2 = unet(sample=x1)",
        "return y2",
    ]


def test_noise_that_every_step_reads_does_not_lengthen_the_sums() -> None:
    """Inpainting: after each step the known part is noised again, with the noise of the start."""
    steps = "".join(
        f"""
        y{i} = unet(sample=x{i})
        m{i} = aten.mul.Tensor(y{i}, 0.5)
        a{i} = aten.sub.Tensor(x{i}, m{i})
        k{i} = aten.mul.Tensor(n, 0.{9 - i})
        p{i} = aten.maximum.default(a{i}, k{i})
        x{i + 1} = aten.add.Tensor(p{i}, a{i})
        """
        for i in range(6)
    )
    lines = rewritten(f"n = noise()\nx0 = aten.mul.Tensor(n, 8.0)\n{steps}\nreturn x6")
    operands = [line.split("linear(")[1].split(";")[0].split(", ") for line in lines if "linear(" in line]
    assert max(map(len, operands)) == 2
    assert len(operands) == 1 + 3 * 6


def test_no_sum_that_outlives_a_call_is_longer_than_the_longest() -> None:
    """A state that no call reads until the end gathers a term at every step."""
    steps = "".join(f"y{i} = unet(sample=y{i - 1})\ns{i} = aten.add.Tensor(s{i - 1}, y{i})\n" for i in range(1, 40))
    lines = rewritten(f"y0 = noise()\ns0 = aten.mul.Tensor(y0, 1.0)\n{steps}\nreturn s39")
    operands = [line.split("linear(")[1].split(";")[0].split(", ") for line in lines if "linear(" in line]
    assert 2 <= max(map(len, operands)) <= 9
    assert len(operands) <= 6


def test_what_cancels_is_zero() -> None:
    assert rewritten("n = noise()\nz = aten.sub.Tensor(n, n)\ny = unet(sample=z)\nreturn y") == [
        "n = noise()",
        "x0 = linear(; 0.0)",
        "y = unet(sample=x0)",
        "return y",
    ]


def test_what_is_left_by_rounding_is_zero() -> None:
    """0.1 + 0.2 - 0.3 is 5.6e-17, not a reason to keep a tensor."""
    lines = rewritten("""
        n = noise()
        m = noise()
        a = aten.mul.Tensor(n, 0.1)
        b = aten.mul.Tensor(n, 0.2)
        c = aten.mul.Tensor(n, 0.3)
        d = aten.add.Tensor(a, b)
        e = aten.sub.Tensor(d, c)
        f = aten.add.Tensor(e, m)
        y = unet(sample=f)
        return y
    """)
    assert lines == ["n = noise()", "m = noise()", "y = unet(sample=m)", "return y"]


def test_new_values_do_not_take_the_names_of_old_ones() -> None:
    lines = rewritten("n = noise()\nz = aten.mul.Tensor(n, 2.0)\nx0 = unet(sample=z)\nx1 = unet(sample=x0)\nreturn x1")
    assert lines == [
        "n = noise()",
        "x2 = linear(n; 2.0)",
        "x0 = unet(sample=x2)",
        "x1 = unet(sample=x0)",
        "return x1",
    ]


@pytest.mark.parametrize(
    ("operation", "wanted"),
    [
        ("aten.rsub.Scalar(n, 3.0, 2.0)", "linear(n; -2.0, 3.0)"),
        ("aten.sub.Tensor(n, 3, alpha=2)", "linear(n; 1.0, -6.0)"),
        ("aten.neg.default(n)", "linear(n; -1.0)"),
        ("aten.div.Tensor(n, 4)", "linear(n; 0.25)"),
        ("aten.mul.Tensor(3, n)", "linear(n; 3.0)"),
        ("aten.add.Tensor(n, many)", "linear(n, many; 1.0, 1.0)"),
        ("linear(n; 2.0*g, 1.0)", "linear(n; 2.0*g, 1.0)"),
    ],
)
def test_linear_operators(operation: str, wanted: str) -> None:
    assert rewritten(f"n = noise()\nz = {operation}\nreturn z") == ["n = noise()", f"x0 = {wanted}", "return x0"]


def test_moves_that_change_nothing_vanish() -> None:
    moves = """
        n = noise()
        a = aten.clone.default(n)
        b = aten.view.default(a, [2, 3])
        c = aten._to_copy.default(b, dtype="float32")
        y = unet(sample=c)
        return y
    """
    assert rewritten(moves) == ["n = noise()", "y = unet(sample=n)", "return y"]


def test_a_table_of_one_number_is_a_factor() -> None:
    (op,) = [op for op in fuse_linear(with_table(torch.tensor([0.5]))).ops if op.operator != "noise"]
    assert (op.operator, len(op.args)) == ("linear", 2)
    assert [c({}) for c in op.coefficients] == [0.5, 1.0]


# Leaves alone


@pytest.mark.parametrize(
    "operation",
    [
        "aten.clamp.default(n, -1, 1)",
        "aten.mul.Tensor(n, n)",
        "aten.div.Tensor(1.0, n)",
        'aten.div.Tensor_mode(n, 2.0, rounding_mode="floor")',
        "aten.div.Tensor(n, 0)",
        "aten.slice.Tensor(w, 0, 0, 2)",
        "aten.add.Tensor(n, flag)",
    ],
)
def test_leaves_alone_what_is_not_linear(operation: str) -> None:
    lines = [
        "n = noise()",
        "w: float32[4, 3] = noise()",
        "flag: bool[2, 3] = aten.gt.Scalar(n, 0)",
        f"z = {operation}",
        "return z, flag, w",
    ]
    assert rewritten("\n".join(lines)) == lines


def test_leaves_a_table_of_many_numbers_alone() -> None:
    after = fuse_linear(with_table(torch.arange(3.0)))
    assert [op.operator for op in after.ops] == ["noise", "aten.mul.Tensor", "linear"]


def test_leaves_a_normal_form_alone() -> None:
    lines = [
        "n = noise()",
        "x0 = linear(n; 14.5)",
        "both: float32[4, 3] = concat(x0, x0, axis=0)",
        "y: float32[4, 3] = wide(sample=both)",
        "u: float32[2, 3], c: float32[2, 3] = split(y, axis=0)",
        "x1 = linear(x0, u, c; 1.0, -1.0*g, 0.5)",
        "step(x1; 0.5)",
        "y1 = unet(sample=x1)",
        "return y1",
    ]
    assert rewritten("\n".join(lines)) == [line.replace(": float32[2, 3]", "") for line in lines]


def test_a_concatenation_in_a_sum_is_not_lost() -> None:
    lines = [
        "n = noise()",
        "both: float32[4, 3] = concat(n, n, axis=0)",
        "z: float32[4, 3] = linear(both; 2.0, 1.0)",
        "return z",
    ]
    assert rewritten("\n".join(lines)) == lines


def test_a_component_may_be_called_like_an_operator() -> None:
    text = """
        program main() {{
            graph {0}(sample: float32[2]) -> (out: float32[2])
            n: float32[2] = noise()
            y: float32[2] = {0}(sample=n)
            return y
        }}
    """
    for name in ("cat", "mul", "clone", "add"):
        program = parse(text.format(name))
        assert fuse_linear(program) == program


# Keeps the numbers


@settings(max_examples=60, deadline=None)
@given(straight_lines())
def test_random_programs_give_the_same_numbers(program: Program) -> None:
    after = verify(fuse_linear(verify(program)))
    assert rewritten_alike(program, after) < REWRITE
    assert parse(str(after)) == after


@settings(max_examples=25, deadline=None)
@given(straight_lines())
def test_unrolling_twice_changes_no_number(program: Program) -> None:
    once = fuse_linear(program)
    assert rewritten_alike(once, verify(fuse_linear(once))) < REWRITE


def test_a_state_that_nearly_vanishes_is_not_divided_by() -> None:
    """The last step of a sampler: what still needs an old state must not get it back from the rounding."""
    text = """
        program main() {
            n: float32[8] = noise()
            m: float32[8] = noise()
            b: float32[8] = aten.mul.Tensor(n, 1e-08)
            x: float32[8] = aten.add.Tensor(b, m)
            z: float32[8] = aten.add.Tensor(n, m)
            y: float32[8] = aten.abs.default(x)
            w: float32[8] = aten.add.Tensor(z, y)
            return w
        }
    """
    program = parse(text)
    noises = draws(program)
    assert difference(numbers(fuse_linear(program), noises), numbers(program, noises)) < REWRITE_SINGLE


# Rejects


def test_an_infinite_factor_is_refused_by_the_verifier() -> None:
    program = parse(HEAD + "n: float32[2, 3] = noise() z: float32[2, 3] = aten.mul.Tensor(n, inf) return z }")
    with pytest.raises(VerifyError) as caught:
        run(program, [fuse_linear])
    assert caught.value.what == "a coefficient is inf"
    assert caught.value.inside == "fuse_linear, after no other pass"
