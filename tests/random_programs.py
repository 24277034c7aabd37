"""Draw random programs, run them, and trace loops over schedulers: what the tests of the passes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import nn

from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.ir.program import Graph, Input, Literal, Op, Polynomial, Program, Ref, Table, Type, Value
from tests.request_values import request_values

PLAIN = Type("float64", (2, 3))
JOINED = Type("float64", (4, 3))
FACTORS = st.sampled_from([-2.0, -1.5, -1.0, -0.5, 0.25, 0.5, 1.0, 3.0])


class Mix(nn.Module):
    """Stand for a model: bounded and not linear."""

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        """Mix the elements of a row."""
        return (torch.tanh(sample.flip(-1) + 0.5 * sample),)


class Body:
    """Stand for an exported program, which is slow to make and to call."""

    def module(self, *, check_guards: bool = True) -> nn.Module:
        """Return the module, which has no guards."""
        return Mix()


def opaque(type_: Type) -> Graph:
    """Give a graph from a type to itself, with its body."""
    return Graph(f"mix{type_.shape[0]}", (Value("sample", type_),), (Value("out", type_),), Body())


@st.composite
def straight_lines(draw: st.DrawFn) -> Program:
    """Draw a program of linear arithmetic, calls, concatenations and splits, and now and then something else."""
    drawn = _Drawn(draw)
    drawn.draw_noise()
    for _ in range(draw(st.integers(2, 14))):
        rules = [drawn.draw_noise, *[drawn.weigh, drawn.combine, drawn.call] * 3, drawn.guide, drawn.call_joined]
        draw(st.sampled_from([*rules, drawn.add_constant, drawn.bend, drawn.tell, drawn.stack]))()
    outputs = draw(st.lists(st.sampled_from(drawn.values), min_size=1, max_size=2, unique=True))
    return Program(
        "main",
        (Input("g", Type("scalar"), 2.0),),
        graphs=(opaque(PLAIN), opaque(JOINED)),
        tables=drawn.tables,
        ops=tuple(drawn.ops),
        outputs=tuple(dict.fromkeys([*outputs, drawn.values[-1]])),
    )


class _Drawn:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.ops, self.values, self.count = draw, list[Op](), list[str](), 0
        data = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).numpy()
        half = torch.full((1, 1), 0.5, dtype=torch.float64).numpy()
        self.tables = (Table("t0", PLAIN, data), Table("t1", Type("float64", (1, 1)), half))

    def add(self, operator: str, *args: Literal, type_: Type = PLAIN, results: int = 1, **attrs: Literal) -> list[str]:
        names = [f"v{self.count + i}" for i in range(results)]
        self.count += results
        self.ops.append(Op(operator, args, tuple(attrs.items()), (), tuple(Value(name, type_) for name in names)))
        return names

    def one(self) -> Ref:
        return Ref(self.draw(st.sampled_from(self.values)))

    def draw_noise(self) -> None:
        (single,) = self.add("noise", type_=Type("float32", PLAIN.shape))
        (double,) = self.add("aten._to_copy.default", Ref(single), dtype="float64")
        self.values += self.add("mix2", sample=Ref(double))

    def weigh(self) -> None:
        factor: Literal = self.draw(FACTORS | st.just(Ref("t1")))
        operator = self.draw(st.sampled_from(["aten.mul.Tensor", "aten.div.Tensor", "aten.neg.default"]))
        self.values += self.add(operator, self.one(), *([factor] if operator != "aten.neg.default" else []))

    def combine(self) -> None:
        operator = self.draw(st.sampled_from(["aten.add.Tensor", "aten.sub.Tensor"]))
        alpha = self.draw(st.sampled_from([{}, {"alpha": 2}, {"alpha": -0.5}]))
        self.values += self.add(operator, self.one(), self.one(), **alpha)

    def add_constant(self) -> None:
        operator, constant = self.draw(st.sampled_from(["aten.add.Tensor", "aten.rsub.Scalar"])), self.draw(FACTORS)
        other: Literal = (
            constant if operator == "aten.rsub.Scalar" else self.draw(st.sampled_from([constant, Ref("t0")]))
        )
        self.values += self.add(operator, self.one(), other)

    def guide(self) -> None:
        (name,) = self.add("linear", type_=Type("float64", ()))
        self.ops[-1] = Op("linear", (), (), (Polynomial.of({("g",): 1.0, (): -1.0}),), self.ops[-1].results)
        self.values += self.add("aten.mul.Tensor", self.one(), Ref(name))

    def call(self) -> None:
        self.values += self.add("mix2", sample=self.one())

    def call_joined(self) -> None:
        (joined,) = self.add("aten.cat.default", (self.one(), self.one()), type_=JOINED)
        if self.draw(st.booleans()):
            (joined,) = self.add("aten.mul.Tensor", Ref(joined), self.draw(FACTORS), type_=JOINED)
        (mixed,) = self.add("mix4", sample=Ref(joined), type_=JOINED)
        self.values += self.add("aten.split.Tensor", Ref(mixed), 2, results=2)

    def stack(self) -> None:
        three = Type("float64", (3, *PLAIN.shape))
        (stacked,) = self.add("aten.stack.default", (self.one(), self.one(), self.one()), type_=three)
        if self.draw(st.booleans()):
            self.values += self.add("aten.select.int", Ref(stacked), 0, self.draw(st.integers(0, 2)))
        else:
            self.values += self.add("aten.sum.dim_IntList", Ref(stacked), (0,))

    def bend(self) -> None:
        self.values += self.add("aten.abs.default", self.one())

    def tell(self) -> None:
        self.ops.append(Op("step", (self.one(),), (), (Polynomial.constant(1.0),)))


def draws(program: Program, seed: int = 0) -> list[torch.Tensor]:
    """Draw the noise that a program asks for, as torch does for a seed."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [op.results[0].type.shape for op in program.ops if op.operator == "noise" and op.results[0].type]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def numbers(program: Program, noises: Sequence[torch.Tensor], **scalars: float) -> list[torch.Tensor]:
    """Run a program."""
    return list(evaluate(program, request_values(program, noises), scalars))


def difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Give the norm of the difference relative to the second's norm, at worst over the tensors."""
    assert [tensor.shape for tensor in one] == [tensor.shape for tensor in other]
    return max(float((a - b).norm() / (b.norm() + 1e-30)) for a, b in zip(one, other, strict=True))


def largest(program: Program, noises: Sequence[torch.Tensor], **scalars: float) -> float:
    """Give the largest magnitude among all the values of a program: what rounding errors are relative to."""
    names = tuple(value.name for op in program.ops for value in op.results)
    return max(float(value.abs().max()) for value in numbers(replace(program, outputs=names), noises, **scalars))


def _told(program: Program) -> Program:
    """Return the latents of each step as well."""
    told = [op for op in program.ops if op.operator == "step"]
    named = {id(op): replace(op, operator="linear", results=(Value(f"told{i}", PLAIN),)) for i, op in enumerate(told)}
    ops = tuple(named.get(id(op), op) for op in program.ops)
    return replace(program, ops=ops, outputs=(*program.outputs, *(op.results[0].name for op in named.values())))


def rewritten_alike(before: Program, after: Program) -> float:
    """Give the largest difference between two programs' outputs, relative to the largest value that they compute."""
    worst = 0.0
    for seed, g in ((0, 2.0), (1, -0.75)):
        noises = draws(before, seed)
        scale = max(1.0, largest(before, noises, g=g), largest(after, noises, g=g))
        pairs = zip(numbers(_told(after), noises, g=g), numbers(_told(before), noises, g=g), strict=True)
        for got, wanted in pairs:
            assert got.shape == wanted.shape and got.dtype == wanted.dtype
            worst = max(worst, float((got - wanted).abs().max()) / scale)
    return worst
