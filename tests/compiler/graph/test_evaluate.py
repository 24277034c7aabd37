"""The evaluator is the meaning of a program: each operator against plain torch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffc.compiler.errors import VerifyError
from diffc.compiler.graph.evaluate import Executor, apply, evaluate, needed_for, operands_of
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Graph, Op, Polynomial, Program, Ref, Value
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.trace import capture
from tests.request_values import request_values

X = torch.arange(12.0).reshape(4, 3) - 5
Y = torch.linspace(-1, 2, 12).reshape(4, 3)
I = torch.tensor([2, 0, 1])  # noqa: E741
VALUES = {"x": X, "y": Y, "i": I}

ATEN: dict[str, Callable[[], torch.Tensor]] = {
    "aten.add.Tensor(x, y, alpha=2)": lambda: X + 2 * Y,
    "aten.mul.Tensor(x, 0.5)": lambda: X * 0.5,
    "aten.clamp.default(x, -1, none)": lambda: X.clamp(min=-1),
    "aten.cat.default([x, y], 1)": lambda: torch.cat([X, Y], 1),
    "aten.stack.default([x, y])": lambda: torch.stack([X, Y]),
    "aten.view.default(x, [2, 6])": lambda: X.view(2, 6),
    "aten.sum.dim_IntList(x, [0], true)": lambda: X.sum(0, keepdim=True),
    'aten._to_copy.default(x, dtype="float16")': lambda: X.half(),
    "aten.index.Tensor(x, [none, i])": lambda: X[:, I],
    "aten.where.ScalarOther(m, x, 0)": lambda: torch.where(X > 0, X, 0),
    "aten.pow.Tensor_Scalar(x, 2)": lambda: X**2,
}


@pytest.mark.parametrize("text", ATEN)
def test_operators_of_aten(text: str) -> None:
    (op,) = parse(f"z = {text}").ops
    (made,) = apply(op, VALUES | {"m": X > 0}, {})
    wanted = ATEN[text]()
    assert made.dtype == wanted.dtype and torch.equal(made, wanted)


def test_an_operator_with_several_results() -> None:
    (op,) = parse("v, i = aten.sort.default(x, 1, true)").ops
    values, indices = apply(op, VALUES, {})
    wanted = X.sort(1, descending=True)
    assert torch.equal(values, wanted.values) and torch.equal(indices, wanted.indices)


def made(text: str, **scalars: float) -> torch.Tensor:
    """Apply one operation to x and y."""
    (op,) = parse(text).ops
    return apply(op, VALUES, scalars)[0]


def test_linear_weighs_and_adds() -> None:
    assert torch.equal(made("z: float32[4, 3] = linear(x, y; 0.5, -2)"), 0.5 * X - 2 * Y)
    assert torch.equal(made("z: float32[4, 3] = linear(x; 0.5, 3)"), 0.5 * X + 3)
    assert torch.equal(made("z: float32[4, 3] = linear(x, y; g, 1 - g*h)", g=3.0, h=0.5), 3 * X - 0.5 * Y)


def test_linear_has_the_type_that_it_declares() -> None:
    assert torch.equal(made("z: float32[2, 4, 3] = linear(x; 1)"), X.expand(2, 4, 3))
    assert torch.equal(made("z: float16[4, 3] = linear(x; 0.25)"), (X / 4).half())
    assert torch.equal(made("z: float32[2] = linear(; g)", g=7.0), torch.tensor([7.0, 7.0]))


def test_split_and_concat_are_inverse() -> None:
    (op,) = parse("a: float32[2, 3], b: float32[2, 3] = split(x, axis=0)").ops
    a, b = apply(op, VALUES, {})
    assert torch.equal(a, X[:2]) and torch.equal(b, X[2:])
    (op,) = parse("z: float32[4, 3] = concat(a, b, axis=0)").ops
    assert torch.equal(apply(op, {"a": a, "b": b}, {})[0], X)


def test_a_call_binds_by_port() -> None:
    class Subtract(torch.nn.Module):
        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return one - other

    module = Subtract()
    program = capture(lambda: module(other=torch.randn(2), one=torch.tensor([1.0, 2.0])), {"module": module})
    noise = torch.tensor([0.25, 0.5])
    assert torch.equal(evaluate(program, request_values(program, [noise]))[0], torch.tensor([0.75, 1.5]))


def test_a_number_given_to_a_port_gets_its_type() -> None:
    (call,) = parse("z = f(t=[3, 4])").ops
    for dtype in ("float32", "int64"):
        port = parse(f"program p() {{ graph f(t: {dtype}[2]) -> (z: {dtype}[2]) return z }}").graphs[0].inputs[0]
        (operand,) = operands_of(call, Graph("f", (port,), (Value("z", port.type),)), {})
        assert operand.dtype == getattr(torch, dtype) and operand.tolist() == [3, 4]


PROGRAM = """
program main(prompt: text[1], g: scalar = 2.0, h: scalar = 1.0) {
    table t: float32[2]
    ids: int64[1, 2], mask: int64[1, 2] = tokenize(prompt, tokenizer="tokenizer", length=2, pad=0)
    n: float32[2] = noise()
    m: float32[2] = noise()
    x: float32[2] = linear(n, m, t; g, h, 1.0)
    step(x; 1.0)
    return x, ids, mask
}
"""


def test_a_request_is_bound() -> None:
    program = parse(PROGRAM)
    program = replace(program, tables=(replace(program.tables[0], data=np.array([1.0, 2.0], np.float32)),))
    noises = [torch.tensor([10.0, 20.0]), torch.tensor([0.5, 0.25])]
    ids, mask = torch.tensor([[5, 6]]), torch.tensor([[1, 0]])
    x, *rest = evaluate(program, request_values(program, noises, prompt=[ids, mask]), {"h": 4.0})
    assert torch.equal(x, torch.tensor([20 + 2 + 1.0, 40 + 1 + 2.0]))
    assert torch.equal(rest[0], ids) and torch.equal(rest[1], mask)


class Halve(torch.nn.Module):
    """Halve."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Halve."""
        return x / 2


def halved_twice() -> Program:
    """Call one graph twice, with a step after each call."""
    module = Halve()
    program = capture(lambda: module(module(torch.randn(2)) + 1), {"halve": module})
    first, add, second = (op for op in program.ops if op.operator != "noise")
    steps = [Op("step", (Ref(op.results[0].name),), (), (Polynomial.constant(2.0),)) for op in (first, second)]
    noise = next(op for op in program.ops if op.operator == "noise")
    return replace(program, ops=(noise, first, steps[0], add, second, steps[1]))


NOISE = torch.tensor([4.0, 8.0])


def test_calls_and_steps_are_observed() -> None:
    program, seen = halved_twice(), list[tuple[str, list[list[float]], list[list[float]]]]()

    def observe(op: Op, operands: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
        seen.append((op.operator, [x.tolist() for x in operands], [x.tolist() for x in results]))

    with Executor(program) as executor:
        executor.run(request_values(program, [NOISE]), observe=observe)
    assert seen == [
        ("halve", [[4.0, 8.0]], [[2.0, 4.0]]),
        ("step", [], [[4.0, 8.0]]),
        ("halve", [[3.0, 5.0]], [[1.5, 2.5]]),
        ("step", [], [[3.0, 5.0]]),
    ]


def test_a_graph_is_replaced_in_one_run() -> None:
    program, counted = halved_twice(), list[int]()

    def thirds(call: int, operands: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        counted.append(call)
        return [operands[0] / 3]

    with Executor(program) as executor:
        values = request_values(program, [NOISE])
        (replaced,) = executor.run(values, replace={"halve": thirds}).values()
        (plain,) = executor.run(values).values()
    assert torch.equal(replaced, (NOISE / 3 + 1) / 3) and torch.equal(plain, (NOISE / 2 + 1) / 2)
    assert counted == [0, 1]


def test_a_value_that_is_given_is_not_computed() -> None:
    program = halved_twice()
    _, first, _, _, second, _ = program.ops
    seen = list[str]()
    with Executor(program) as executor:
        given = {first.results[0].name: torch.tensor([7.0, 9.0])}
        ops = needed_for(program.ops, program.outputs, given)
        (output,) = executor.run(given, ops=ops, observe=lambda op, *_: seen.append(op.results[0].name)).values()
    assert output.tolist() == [4.0, 5.0] and seen == [second.results[0].name]


def test_a_value_is_freed_after_its_last_use() -> None:
    program, living = halved_twice(), list[bool]()
    values = list[weakref.ref[torch.Tensor]]()

    def observe(op: Op, _: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
        values.append(weakref.ref(results[0]))
        living.append(values[0]() is not None)

    with Executor(program) as executor:
        executor.run(request_values(program, [NOISE]), observe=observe)
    assert living == [True, True, False, False]


def test_a_program_needs_its_noise() -> None:
    with pytest.raises(VerifyError, match="noise has no values"):
        evaluate(halved_twice(), {})


def test_what_is_no_operator_has_no_meaning() -> None:
    with pytest.raises(VerifyError, match="sort has no meaning outside a program"):
        apply(Op("sort"), {}, {})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=4), st.floats(-4, 4, width=32))
def test_linear_is_the_weighted_sum(weights: list[float], constant: float) -> None:
    operands = {f"x{i}": X * (i + 1) for i in range(len(weights))}
    coefficients = ", ".join(map(repr, [*weights, constant]))
    (op,) = parse(f"z: float32[4, 3] = linear({', '.join(operands)}; {coefficients})").ops
    wanted = sum(w * x.double() for w, x in zip(weights, operands.values(), strict=True)) + constant
    assert torch.allclose(apply(op, operands, {})[0].double(), wanted, rtol=0, atol=1e-4)


def test_a_program_without_operations_gives_its_tables() -> None:
    program = Program("main", tables=parse("program p() { table t: float32[1] return t }").tables, outputs=("t",))
    program = replace(program, tables=(replace(program.tables[0], data=np.array([3.0], np.float32)),))
    assert evaluate(program, {})[0].tolist() == [3.0]
    assert ComponentCalls().graphs([program])[0].outputs == ("t",)


def test_an_output_that_is_returned_twice_is_returned_twice() -> None:
    program = parse("program p() { x: float32[2] = linear(; 3.0) return x, x }")
    assert [output.tolist() for output in evaluate(program, {})] == [[3.0, 3.0]] * 2
