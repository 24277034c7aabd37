"""Check the rules of programs: after every pass of a compiler, and before a runtime executes anything."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import IntEnum
from typing import TypeVar

from diffc.runtime.errors import VerifyError
from diffc.runtime.program.constant import constant
from diffc.runtime.program.parse import ELEMENTS, RESERVED
from diffc.runtime.program.program import (
    BUILTINS,
    COMPARISONS,
    DTYPES,
    FLOATS,
    LENGTH,
    NOISE_KINDS,
    SCALAR,
    Graph,
    Input,
    Literal,
    Op,
    Program,
    Ref,
    Type,
    Value,
    sizes_of_call,
)
from diffc.runtime.program.size import AnySize, Size, bounds
from diffc.runtime.program.spawned_noise import fault_of_terms
from diffc.runtime.program.texts import TEXT_OPERATORS

P = TypeVar("P", bound=Program)

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
INTEGERS = ("int64", "int32")
TOKENS = 2**20
SIDES = ("padding_side", "truncation_side")


class Level(IntEnum):
    """Name the rules that a program is checked against; a level includes the rules of those before it.

    ``TRACED`` programs may apply operators of ATen, to scalars too, and hold bfloat16 values. Those in ``NORMAL_FORM``
    apply graphs and built-ins only. The first output of an ``EXECUTABLE`` one is a batch, of which every text, array
    and noise has a row for each image.
    """

    TRACED = 1
    NORMAL_FORM = 2
    EXECUTABLE = 3


def verify(program: P, level: Level = Level.TRACED, *, tokenizers: Collection[str] | None = None) -> P:
    """Return the program, or raise `VerifyError` with the operation that breaks a rule of the level.

    ``tokenizers`` are the names that ``tokenize`` may use; None stands for any.
    """
    _Verifier(program, level, tokenizers).run()
    return program


class _Verifier:
    """Follow the program from its inputs to its outputs, with the type of every value defined so far."""

    def __init__(self, program: Program, level: Level, tokenizers: Collection[str] | None) -> None:
        self.program, self.level, self.tokenizers = program, level, tokenizers
        self.graphs = {graph.name: graph for graph in program.graphs}
        self.dtypes = DTYPES + FLOATS if level == Level.TRACED else DTYPES
        self.floats = tuple(dtype for dtype in FLOATS if dtype in self.dtypes)
        self.bounds = {length.name: (length.least, length.most) for length in program.lengths}
        self.types: dict[str, Type] = {}
        self.where = f"program {program.name}"
        self.rules: dict[str, Callable[[Op], None]] = {
            **dict.fromkeys(TEXT_OPERATORS, self.text),
            "tokenize": self.tokenize,
            "noise": self.noise,
            "linear": self.linear,
            "split": self.split,
            "concat": self.concat,
            "step": self.step,
        }

    def need(self, condition: bool, what: str) -> None:
        if not condition:
            raise VerifyError(what, where=self.where)

    def run(self) -> None:
        self.name(self.program.name)
        for item in self.program.inputs:
            self.input(item)
        for guard in self.program.guards:
            legal = self.types.get(guard.scalar) == SCALAR and guard.comparison in COMPARISONS
            self.need(legal, f"a guard on {guard.scalar}, which is no scalar input")
        self.unique("length", self.bounds_of_lengths())
        self.unique("graph", (graph.name for graph in self.program.graphs))
        for graph in self.program.graphs:
            self.graph(graph)
        for table in self.program.tables:
            self.define(table)
        for op in self.program.ops:
            self.where = op.where
            self.op(op)
        self.where = "return"
        self.outputs()
        if self.level == Level.EXECUTABLE:
            self.batches()

    # Declarations

    def name(self, name: str) -> None:
        self.need(NAME.fullmatch(name) is not None and name not in RESERVED, f"{name!r} is no name")

    def unique(self, kind: str, names: Iterable[str]) -> None:
        seen = set[str]()
        for name in names:
            self.need(name not in seen, f"{kind} {name} is declared twice")
            seen.add(name)

    def bounds_of_lengths(self) -> Iterator[str]:
        for length in self.program.lengths:
            self.name(length.name)
            self.need(0 <= length.least <= length.most <= TOKENS, f"no length is {length}")
            yield length.name

    def tensor(self, value: Value) -> None:
        self.need(value.type.dtype in self.dtypes, f"{value} has no tensor type")
        self.need(self.bounds.keys() >= set(value.type.lengths), f"{value} has a length that is not declared")
        if value.type.lengths:
            ends = [bounds(size, self.bounds) for size in value.type.shape]
            is_sensible = min(low for low, _ in ends) >= 0 and math.prod(high for _, high in ends) <= ELEMENTS
            self.need(is_sensible, f"{value} has no sensible size for all lengths")

    def define(self, value: Value, *, is_text: bool = False) -> None:
        self.name(value.name)
        if not is_text:
            self.tensor(value)
        self.need(value.name not in self.types | self.bounds, f"{value.name} is defined twice")
        self.need(self.types.keys() >= set(value.type.lengths), f"{value} has a length that is not counted yet")
        self.types[value.name] = value.type

    def input(self, item: Input) -> None:
        dtype, shape = item.type.dtype, item.type.shape
        self.name(item.name)
        self.need(not item.type.lengths, f"input {item.name} has an open size")
        legal = (dtype, len(shape)) in (("text", 1), ("scalar", 0)) or (dtype == "float32" and len(shape) > 0)
        self.need(legal, f"input {item.name} is neither text, scalar, image nor tensor")
        is_image = dtype == "float32" and len(shape) == 4 and shape[1] in (1, 3) and 0 not in shape
        self.need(is_image or not item.is_image, f"input {item.name} is no image, grey or in colour")
        has_default = item.default is not None
        self.need(dtype == "scalar" or not has_default, f"input {item.name} has a default and is no scalar")
        self.need(item.default is None or math.isfinite(item.default), f"input {item.name} defaults to {item.default}")
        self.need(item.name not in self.types, f"{item.name} is defined twice")
        self.types[item.name] = item.type

    def graph(self, graph: Graph) -> None:
        self.name(graph.name)
        self.need(graph.name not in BUILTINS, f"a graph takes the name of the built-in {graph.name}")
        ports = (*graph.inputs, *graph.outputs)
        self.unique(f"port of graph {graph.name}", (port.name for port in ports))
        for port in ports:
            self.name(port.name)
            self.tensor(port)

    # Operations

    def op(self, op: Op) -> None:
        for name in op.reads():
            self.need(name in self.types, f"{name} is read before it is defined")
        self.unique("keyword", (key for key, _ in op.attrs))
        self.coefficients(op)
        graph = self.graphs.get(op.operator)
        if graph is not None:
            self.call(op, graph)
        elif op.operator in self.rules:
            self.rules[op.operator](op)
        else:
            self.need(op.operator.startswith("aten."), f"{op.operator} is no built-in and no graph of the program")
            self.need(self.level == Level.TRACED, f"{op.operator} is an operator of ATen: no runtime has it")
        for value in op.results:
            self.define(value, is_text=op.operator in TEXT_OPERATORS)

    def coefficients(self, op: Op) -> None:
        takes = op.operator in ("linear", "step")
        self.need(takes or not op.coefficients, f"{op.operator} takes no coefficients")
        for names, factor in (term for coefficient in op.coefficients for term in coefficient.terms):
            self.need(math.isfinite(factor), f"a coefficient is {factor}")
            self.need(all(self.types[name] == SCALAR for name in names), "a coefficient reads no scalar")
        count = f"{len(op.coefficients)} coefficients for {len(op.args)} operands"
        fits = len(op.coefficients) > 0 and 0 <= len(op.coefficients) - len(op.args) <= 1
        self.need(fits or not takes, f"{count}: {op.operator} takes one each, and may take a constant term")

    def call(self, op: Op, graph: Graph) -> None:
        arguments, ports = dict(op.attrs), {port.name: port.type for port in graph.inputs}
        legal = not op.args and arguments.keys() == ports.keys()
        self.need(legal, f"{graph.name} is called by port: {', '.join(ports) or 'it has none'}")
        sizes = self.sizes(op, graph)
        for name, type_ in ports.items():
            argument, expected = arguments[name], type_.replaced(sizes)
            if isinstance(argument, Ref):
                type_of_argument = self.types[argument.name]
                self.need(type_of_argument == expected, f"port {name} takes {expected}, not {type_of_argument}")
            elif type_.dtype in DTYPES:
                self.literal(argument, expected, name)
        returned = [value.type for value in op.results]
        outputs = [port.type.replaced(sizes) for port in graph.outputs]
        self.need(returned == outputs, f"the results are not those of {graph.name}")

    def sizes(self, op: Op, graph: Graph) -> dict[str, AnySize]:
        """Return the sizes that the lengths of a graph stand for in a call, within the lengths' bounds."""
        sizes = sizes_of_call(op, graph, {name: type_.shape for name, type_ in self.types.items()})
        for length, size in sizes.items():
            (low, high), (least, most) = bounds(size, self.bounds), self.bounds[length]
            self.need(least <= low and high <= most, f"{graph.name} takes {least} to {most} for {length}, not {size}")
        return sizes

    def literal(self, literal: Literal, type_: Type, port: str) -> None:
        try:
            constant(literal, type_.at({name: most for name, (_, most) in self.bounds.items()}))
        except VerifyError as error:
            raise VerifyError(f"port {port}: {error.what}", where=self.where) from error

    def takes(self, op: Op, *, args: int, attrs: Collection[str], results: Collection[int]) -> None:
        legal = len(op.args) == args and {key for key, _ in op.attrs} <= set(attrs) and len(op.results) in results
        self.need(legal, f"{op.operator} has other arguments or results than it takes")

    def operands(self, op: Op) -> list[Type]:
        names = [item.name for item in op.args if isinstance(item, Ref)]
        self.need(len(names) == len(op.args), f"{op.operator} takes values only")
        types = [self.types[name] for name in names]
        self.need(all(type_.dtype in self.dtypes for type_ in types), f"an operand of {op.operator} is no tensor")
        return types

    def text_operand(self, op: Op) -> Type:
        text = self.types.get(op.args[0].name) if isinstance(op.args[0], Ref) else None
        if text is None or text.dtype != "text":
            raise VerifyError(f"{op.operator} reads a text", where=self.where)
        return text

    def tokenizer(self, op: Op) -> None:
        tokenizer = op.attr("tokenizer")
        legal = isinstance(tokenizer, str) and (self.tokenizers is None or tokenizer in self.tokenizers)
        self.need(legal, f"unknown tokenizer {tokenizer!r}")

    def text(self, op: Op) -> None:
        self.takes(op, args=1, attrs=TEXT_OPERATORS[op.operator], results=(1,))
        self.need(op.results[0].type == self.text_operand(op), f"the result of {op.operator} is not the texts")
        attrs = dict(op.attrs)
        required = set(TEXT_OPERATORS[op.operator]) - {"side", "characters", "by", "keep"}
        self.need(required <= attrs.keys(), f"{op.operator} lacks {', '.join(sorted(required - attrs.keys()))}")
        self.need(attrs.pop("side", "both") in ("both", "left", "right"), f"side is {op.attr('side')!r}")
        if op.operator == "expand":
            self.tokenizer(op)
            self.need(_are_words(op.attr("words")), "words are no pairs of a word and its expansion")
            return
        self.need(all(isinstance(value, str) for value in attrs.values()), f"{op.operator} takes strings")
        self.need(attrs.get("old") != "", "replace replaces nothing by something")
        self.need("" not in (attrs.get("start"), attrs.get("end")), "without looks for nothing")
        self.need(str(attrs.get("template", "{}")).count("{}") == 1, "the template is without one {}")

    def tokenize(self, op: Op) -> None:
        self.takes(op, args=1, attrs=("tokenizer", "length", "pad", "template", "count", *SIDES), results=(1, 2))
        text = self.text_operand(op)
        self.tokenizer(op)
        template = op.attr("template", "{}")
        length, pad = op.attr("length"), op.attr("pad")
        if type(length) is not int or not 1 <= length <= TOKENS:
            raise VerifyError(f"length is {length!r}", where=self.where)
        self.need(type(pad) is int and 0 <= pad < 2**31, f"pad is {pad!r}")
        self.need(
            isinstance(template, str) and template.count("{}") == 1, f"template is {template!r}, without one {{}}"
        )
        for side in SIDES:
            self.need(op.attr(side, "right") in ("left", "right"), f"{side} is {op.attr(side)!r}")
        columns: list[AnySize] = [length, *([Size.of(name) for name in self.counted(op, length)])]
        for value in op.results:
            self.need(value.type.dtype in INTEGERS, f"{value.name} does not hold integers")
            legal = value.type.shape in [(*text.shape, size) for size in columns]
            self.need(legal, f"{value.name} is not {text.shape[0]} by {' or '.join(map(str, columns))}")
        self.need(len({value.type.shape for value in op.results}) == 1, "ids and mask differ in shape")

    def counted(self, op: Op, length: int) -> Iterator[str]:
        """Define the length that an operation counts, and yield it."""
        count = op.attr("count")
        if count is not None:
            self.need(isinstance(count, str) and count in self.bounds, f"the length {count!r} is not declared")
            assert isinstance(count, str)
            self.need(count not in self.types, f"the length {count} is counted twice")
            self.need(self.bounds[count][1] <= length, f"{count} is at most {length}, the length")
            self.types[count] = LENGTH
            yield count

    def noise(self, op: Op) -> None:
        kind = op.attr("kind", "normal")
        dtypes = NOISE_KINDS.get(kind, ()) if isinstance(kind, str) else ()
        limits = ("low", "high") if kind == "integers" else ()
        self.takes(op, args=len(op.args), attrs=("each", "kind", "separate", "pool", "terms", *limits), results=(1,))
        self.need(bool(dtypes) and op.attr("kind") != "normal", f"kind is none of {', '.join(list(NOISE_KINDS)[1:])}")
        self.need(op.results[0].type.dtype in dtypes, f"noise is sampled in {' or '.join(dtypes)}")
        low, high = (op.attr(limit) for limit in limits) if limits else (0, 1)
        are_limits = type(low) is int and type(high) is int and -(2**63) <= low < high < 2**63
        self.need(are_limits, f"no integers lie from {low} to below {high}")
        self.need(not op.results[0].type.lengths, "noise has an open size")
        fault = fault_of_terms(op)
        self.need(fault is None, str(fault))
        rows = {item.name for item in (*self.program.texts, *self.program.arrays)}
        follows = all(isinstance(item, Ref) and item.name in rows for item in op.args)
        self.need(follows, "noise follows the rows of texts and arrays of the request only")
        for key in ("each", "separate"):
            self.need(op.attr(key, True) is True, f"{key} is true, or left out")
        self.need(
            bool(op.args) or op.attr("each") is None, "noise that follows no input has a row for each image already"
        )

    def linear(self, op: Op) -> None:
        operands = self.operands(op)
        self.takes(op, args=len(operands), attrs=(), results=(1,))
        result = op.results[0].type
        self.need(result.dtype in self.floats, "linear returns floating-point numbers")
        for operand in operands:
            self.need(_broadcasts(operand.shape, result.shape), f"{operand} does not broadcast to {result}")

    def step(self, op: Op) -> None:
        operands = self.operands(op)
        self.takes(op, args=max(1, len(operands)), attrs=(), results=(0,))
        self.need(not any(operand.lengths for operand in operands), "the latents have an open size")
        latents = max((o.fixed for o in operands), key=lambda shape: (len(shape), shape))
        self.need(all(_broadcasts(o.shape, latents) for o in operands), "the operands of step differ in shape")

    def axis(self, op: Op, rank: int) -> int:
        axis = op.attr("axis")
        if type(axis) is not int or not 0 <= axis < rank:
            raise VerifyError(f"axis is {axis!r}, of {rank}", where=self.where)
        return axis

    def split(self, op: Op) -> None:
        self.takes(op, args=1, attrs=("axis",), results=range(1, len(op.results) + 1))
        [operand] = self.operands(op)
        axis = self.axis(op, len(operand.shape))
        [part, *_] = parts = [value.type for value in op.results]
        joined = (
            *part.shape[:axis],
            *(size * len(parts) for size in part.shape[axis : axis + 1]),
            *part.shape[axis + 1 :],
        )
        equal = Type(part.dtype, joined) == operand and all(value == part for value in parts)
        self.need(equal, "the parts are not equal parts")

    def concat(self, op: Op) -> None:
        self.takes(op, args=max(1, len(op.args)), attrs=("axis",), results=(1,))
        first, *_ = parts = self.operands(op)
        axis = self.axis(op, len(first.shape))
        around = {(p.dtype, len(p.shape), p.shape[:axis], p.shape[axis + 1 :]) for p in parts}
        self.need(len(around) == 1, "the operands of concat differ, not in the axis alone")
        joined = (*first.shape[:axis], sum(p.shape[axis] for p in parts), *first.shape[axis + 1 :])
        self.need(op.results[0].type == Type(first.dtype, joined), "the result is not the operands' concatenation")

    # What a request decides

    def outputs(self) -> None:
        self.need(bool(self.program.outputs), "the program returns nothing")
        for name in self.program.outputs:
            self.need(name in self.types, f"the program returns {name}, which is not defined")
            self.need(self.types[name].dtype in self.dtypes, f"the program returns {name}, which is no tensor")

    def batches(self) -> None:
        first = self.types[self.program.outputs[0]]
        is_batch = bool(first.shape) and 0 not in first.shape and first.dtype in self.floats and not first.lengths
        self.need(is_batch, f"the first output is {first}, no batch")
        batch, rows = self.program.batch, self.program.rows
        self.need(rows == batch or batch == 1, f"the first output is {first}, no row for each of {batch} images")
        for item in (*self.program.texts, *self.program.arrays):
            self.need(item.type.shape[0] == batch, f"{item.name} is not one for each of {batch} images")
        for noise in self.program.noises:
            rows = noise.type.fixed[0] if noise.type.shape else 0
            self.need(rows > 0 and rows % batch == 0, f"{noise.name} is not one for each of {batch} images")


def _are_words(words: Literal) -> bool:
    pairs = words if isinstance(words, tuple) else ()
    strings = [p for p in pairs if isinstance(p, tuple) and len(p) == 2 and all(isinstance(s, str) for s in p)]
    return len(pairs) > 0 and len(strings) == len(pairs) and all(word for word, _ in strings)


def _broadcasts(shape: tuple[AnySize, ...], to: tuple[AnySize, ...]) -> bool:
    padded: tuple[AnySize, ...] = (1,) * (len(to) - len(shape)) + shape
    return len(padded) == len(to) and all(a in (1, b) for a, b in zip(padded, to, strict=True))
