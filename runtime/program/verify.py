"""Check that a program can be executed before anything of it is: a sound bundle never fails here."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from diffc.runtime.errors import BundleError
from diffc.runtime.program.program import BUILTINS, Graph, Literal, Op, Program, Ref, Type, Value, constant

INTEGERS, FLOATS = ("int64", "int32"), ("float32", "float16", "float64")
TOKENS = 2**20


def verify(program: Program, *, tokenizers: Collection[str]) -> None:
    """Check names, types, shapes and the batch. Raises `BundleError` with the line that is wrong."""
    _Verifier(program, tokenizers).run()


class _Verifier:
    """Follow the program from its inputs to its outputs, with the type of every value known so far."""

    def __init__(self, program: Program, tokenizers: Collection[str]) -> None:
        self.program, self.tokenizers = program, tokenizers
        self.types: dict[str, Type] = {}
        self.where = f"program {program.name}"
        self.rules: dict[str, Callable[[Op], None]] = {
            "tokenize": self.tokenize,
            "noise": self.noise,
            "linear": self.linear,
            "split": self.split,
            "concat": self.concat,
            "step": self.step,
        }

    def need(self, condition: bool, what: str) -> None:
        if not condition:
            raise BundleError(f"program {self.program.name}: {what}", where=self.where, fix="build the bundle again")

    def run(self) -> None:
        self.inputs()
        for graph in self.program.graphs.values():
            self.ports(graph)
        for table in self.program.tables:
            self.define(table)
        for op in self.program.ops:
            self.where = op.source
            self.op(op)
        self.where = "return"
        self.outputs()

    def inputs(self) -> None:
        for item in self.program.inputs:
            kind, rank = item.type.dtype, len(item.type.shape)
            known = (kind, rank) in (("text", 1), ("scalar", 0)) or (kind == "float32" and rank > 0)
            self.need(known, f"input {item.name} is neither text, scalar, picture nor tensor")
            seen = rank == 4 and item.type.shape[1] in (1, 3) and 0 not in item.type.shape
            self.need(seen or not item.is_picture, f"input {item.name} is no picture, grey or in colour")
            self.need(item.default is None or kind == "scalar", f"input {item.name} is a text with a default")
            self.need(item.name not in self.types, f"{item.name} is defined twice")
            self.types[item.name] = item.type
        for guard in self.program.guards:
            self.need(guard.scalar in self.program.scalars, f"guard {guard} reads no scalar input")

    def ports(self, graph: Graph) -> None:
        self.need(graph.name not in BUILTINS, f"graph {graph.name} has the name of a built-in")
        names = [port.name for port in graph.inputs]
        self.need(len(set(names)) == len(names), f"graph {graph.name} has two inputs of one name")
        for port in (*graph.inputs, *graph.outputs):
            self.need(port.type.dtype not in ("text", "scalar"), f"port {port.name} is no tensor")

    def define(self, value: Value) -> None:
        self.need(value.type.dtype not in ("text", "scalar"), f"{value.name} is no tensor")
        self.need(value.name not in self.types, f"{value.name} is defined twice")
        self.types[value.name] = value.type

    def read(self, literal: Literal) -> Type:
        name = literal.name if isinstance(literal, Ref) else ""
        self.need(name in self.types, f"{name or repr(literal)} is not a value known here")
        return self.types[name]

    def tensors(self, op: Op) -> list[Type]:
        types = [self.read(item) for item in op.args]
        self.need(all(t.dtype not in ("text", "scalar") for t in types), "an operand is no tensor")
        return types

    def op(self, op: Op) -> None:
        graph = self.program.graphs.get(op.operator)
        self.need(graph is not None or op.operator in self.rules, f"unknown operator {op.operator}")
        self.need(not op.coefficients or op.operator in ("linear", "step"), f"{op.operator} takes no coefficients")
        scalars = self.program.scalars
        for polynomial in op.coefficients:
            self.need(
                all(n in scalars for _, names in polynomial.terms for n in names), "a coefficient reads no scalar"
            )
        if graph is not None:
            self.call(op, graph)
        else:
            self.rules[op.operator](op)
        for value in op.results:
            self.define(value)

    def shape_of(self, op: Op, args: int, attrs: Collection[str], results: Collection[int]) -> None:
        fits = len(op.args) == args and set(op.attrs) <= set(attrs) and len(op.results) in results
        self.need(fits, f"{op.operator} has other arguments or results than it takes")

    def call(self, op: Op, graph: Graph) -> None:
        self.need(not op.args, "a graph is called by port")
        self.need(set(op.attrs) == {port.name for port in graph.inputs}, f"the call misses the ports of {graph.name}")
        for port in graph.inputs:
            given = op.attrs[port.name]
            if isinstance(given, Ref):
                found = self.read(given)
                self.need(found == port.type, f"port {port.name} takes {port.type}, not {found}")
            else:
                constant(given, port.type)
        returned = [value.type for value in op.results]
        self.need(returned == [port.type for port in graph.outputs], f"the results are not those of {graph.name}")

    def tokenize(self, op: Op) -> None:
        self.shape_of(op, 1, ("tokenizer", "length", "pad", "template"), (1, 2))
        text = self.read(op.args[0])
        length, pad, template = op.attrs.get("length"), op.attrs.get("pad"), op.attrs.get("template", "{}")
        self.need(text.dtype == "text", "tokenize reads a text")
        self.need(op.attrs.get("tokenizer") in self.tokenizers, f"unknown tokenizer {op.attrs.get('tokenizer')!r}")
        self.need(type(length) is int and 1 <= length <= TOKENS, f"length is {length!r}")
        self.need(type(pad) is int and 0 <= pad < 2**31, f"pad is {pad!r}")
        self.need(isinstance(template, str) and template.count("{}") == 1, f"template is {template!r}, without {{}}")
        for value in op.results:
            self.need(value.type.dtype in INTEGERS, f"{value.name} does not hold integers")
            self.need(value.type.shape == (*text.shape, length), f"{value.name} is not {text.shape[0]} by {length}")

    def noise(self, op: Op) -> None:
        self.shape_of(op, 0, (), (1,))
        self.need(op.results[0].type.dtype == "float32", "noise is drawn in float32")

    def linear(self, op: Op) -> None:
        operands = self.tensors(op)
        self.need(not op.attrs and len(op.results) == 1, "linear has other arguments or results than it takes")
        self.coefficients(op)
        result = op.results[0].type
        self.need(result.dtype in FLOATS, "linear gives a floating-point number")
        for operand in operands:
            self.need(_broadcasts(operand.shape, result.shape), f"{operand} does not broadcast to {result}")

    def coefficients(self, op: Op) -> None:
        fits = 0 <= len(op.coefficients) - len(op.args) <= 1 and len(op.coefficients) > 0
        self.need(fits, f"{len(op.coefficients)} coefficients for {len(op.args)} operands")

    def step(self, op: Op) -> None:
        operands = self.tensors(op)
        self.need(bool(operands) and not op.attrs and not op.results, "step has other arguments than it takes")
        self.coefficients(op)
        whole = max((o.shape for o in operands), key=lambda shape: (len(shape), shape))
        self.need(all(_broadcasts(o.shape, whole) for o in operands), "the operands of step differ in shape")

    def axis(self, op: Op, shape: tuple[int, ...]) -> int:
        axis = op.attrs.get("axis")
        self.need(type(axis) is int and -len(shape) <= axis < len(shape), f"axis is {axis!r}")
        assert isinstance(axis, int)
        return axis % len(shape)

    def split(self, op: Op) -> None:
        self.shape_of(op, 1, ("axis",), range(1, len(op.results) + 1))
        [whole] = self.tensors(op)
        axis = self.axis(op, whole.shape)
        part = list(whole.shape)
        part[axis] //= len(op.results)
        equal = all(value.type == Type(whole.dtype, tuple(part)) for value in op.results)
        self.need(equal and part[axis] * len(op.results) == whole.shape[axis], "the parts are not equal parts")

    def concat(self, op: Op) -> None:
        parts = self.tensors(op)
        self.shape_of(op, max(1, len(op.args)), ("axis",), (1,))
        axis = self.axis(op, parts[0].shape)
        shape = list(parts[0].shape)
        self.need(all(len(p.shape) == len(shape) for p in parts), "the parts differ in rank")
        shape[axis] = sum(p.shape[axis] for p in parts)
        whole = Type(parts[0].dtype, tuple(shape))
        alike = all(p.dtype == whole.dtype and _but(axis, p.shape) == _but(axis, shape) for p in parts)
        self.need(alike and op.results[0].type == whole, "the parts do not make the whole")

    def outputs(self) -> None:
        self.need(bool(self.program.outputs), "nothing is returned")
        types = [self.read(Ref(name)) for name in self.program.outputs]
        drawn = types[0]
        self.need(
            bool(drawn.shape) and 0 not in drawn.shape and drawn.dtype in FLOATS,
            f"the first output is {drawn}, no batch",
        )
        batch = drawn.shape[0]
        for item in (*self.program.texts, *self.program.arrays):
            self.need(item.type.shape[0] == batch, f"{item.name} is not one for each of {batch} pictures")
        for noise in self.program.noises:
            rows = noise.type.shape[:1] or (0,)
            self.need(rows > (0,) and rows[0] % batch == 0, f"{noise.name} is not one for each of {batch} pictures")


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _but(axis: int, shape: Collection[int]) -> list[int]:
    return [size for at, size in enumerate(shape) if at != axis]
