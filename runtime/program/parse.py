"""Read the text of a program, in the grammar at the head of ``program.py``.

The text may come out of a hostile bundle, so everything is bounded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import TypeVar

from diffc.runtime.errors import ParseError
from diffc.runtime.program.polynomial import Polynomial
from diffc.runtime.program.program import (
    COMPARISONS,
    DTYPES,
    FLOATS,
    SCALAR,
    UNTYPED,
    Graph,
    Guard,
    Input,
    Length,
    Literal,
    Op,
    Program,
    Ref,
    Type,
    Value,
)
from diffc.runtime.program.size import AnySize, Size

T = TypeVar("T")

CHARACTERS, DIGITS, DEPTH, RANK, ELEMENTS = 2**24, 400, 8, 8, 2**32
"""Bounds of a text, a number, nested lists, and the rank and the elements of a shape."""

WORDS: dict[str, Literal] = {"true": True, "false": False, "none": None}
RESERVED = (*WORDS, "inf", "nan", "program", "guard", "graph", "table", "return")
"""Words of the grammar, which name nothing."""


TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>-?(?:[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|inf\b|nan\b))
      | (?P<name>[A-Za-z_][A-Za-z0-9_.]*)
      | (?P<mark>->|<=|>=|==|!=|[-+*<>=(){}\[\],:;])""",
    re.VERBOSE | re.ASCII,
)


def read_program(text: str) -> Program:
    """Read a program in which every value states its type. Raises `ParseError` with the line that is no such text."""
    return Reader(text).program()


class Reader:
    """Read tokens from left to right, one method for each rule of the grammar.

    Raises `ParseError`. A value of an ``untyped`` text need not state its type.
    """

    def __init__(self, text: str, *, untyped: bool = False) -> None:
        if len(text) > CHARACTERS:
            raise ParseError(f"program text: {len(text)} characters are too many", fix=f"at most {CHARACTERS}")
        self.lines, self.untyped = text.split("\n"), untyped
        self.tokens, self.at, self.depth = list[tuple[str, str, int]](), 0, 0
        position, line = 0, 0
        while position < len(text):
            match = TOKEN.match(text, position)
            if match is None:
                raise self._error(f"unexpected character {text[position]!r}", line)
            if match.lastgroup != "space":
                self.tokens.append((match.lastgroup or "", match.group(), line))
            line += match.group().count("\n")
            position = match.end()

    def _error(self, what: str, line: int) -> ParseError:
        where = f"line {line + 1}: {self.lines[line].strip()[:200]}"
        return ParseError(f"program text: {what}", where=where, fix="see the grammar in docs/program-format.md")

    def line(self) -> int:
        return self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.lines) - 1

    def fail(self, expected: str) -> ParseError:
        return self._error(f"expected {expected}, found {self.peek()[:80] or 'the end'}", self.line())

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][1] if self.at + ahead < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def takes(self, mark: str) -> bool:
        matches = self.peek() == mark
        self.at += matches
        return matches

    def take(self, *marks: str) -> None:
        for mark in marks:
            if not self.takes(mark):
                raise self.fail(repr(mark))

    def of_kind(self, kind: str) -> str:
        if self.kind() != kind:
            raise self.fail(f"a {kind}")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def name(self) -> str:
        return self.of_kind("name")

    def number(self) -> int | float:
        text = self.of_kind("number")
        if len(text) > DIGITS:
            raise self._error("a number is too long", self.line())
        return int(text) if re.fullmatch(r"-?[0-9]+", text) else float(text)

    def integer(self) -> int:
        number = self.number()
        if not isinstance(number, int):
            self.at -= 1
            raise self.fail("an integer")
        return number

    def real(self) -> float:
        number = self.number()
        try:
            return float(number)
        except OverflowError as error:
            raise self._error("a number is too large", self.line()) from error

    def listed(self, rule: Callable[[], T], stop: tuple[str, ...]) -> tuple[T, ...]:
        if self.peek() in stop:
            return ()
        items = [rule()]
        while self.takes(","):
            items.append(rule())
        return tuple(items)

    def program(self) -> Program:
        self.take("program")
        name = self.name()
        self.take("(")
        inputs = self.listed(self.input, (")",))
        self.take(")", "{")
        guards, graphs, tables, ops = list[Guard](), list[Graph](), list[Value](), list[Op]()
        lengths = list[Length]()
        while self.takes("guard"):
            guards.append(self.guard())
        while self.peek() == "length" and self.peek(2) == "from":
            lengths.append(self.length())
        while self.takes("graph"):
            graphs.append(self.graph())
        while self.takes("table"):
            tables.append(self.table())
        while self.peek() not in ("return", ""):
            ops.append(self.op())
        self.take("return")
        outputs = self.listed(self.name, ("}",))
        self.take("}")
        if self.peek():
            raise self.fail("the end")
        return Program(name, inputs, tuple(guards), tuple(graphs), tuple(tables), tuple(ops), outputs, tuple(lengths))

    def input(self) -> Input:
        name = self.name()
        self.take(":")
        if self.takes("image") or self.takes("picture"):  # as programs in bundles of the schemas 1 and 2 write it
            return Input(name, Type("float32", self.shape()), is_image=True)
        return Input(name, self.type(), self.real() if self.takes("=") else None)

    def guard(self) -> Guard:
        name = self.name()
        if self.peek() not in COMPARISONS:
            raise self.fail("a comparison")
        return Guard(name, self.of_kind("mark"), self.real())

    def length(self) -> Length:
        self.take("length")
        name = self.name()
        self.take("from")
        least = self.integer()
        self.take("to")
        return Length(name, least, self.integer())

    def graph(self) -> Graph:
        name = self.name()
        self.take("(")
        inputs = self.listed(self.value, (")",))
        self.take(")", "->", "(")
        outputs = self.listed(self.value, (")",))
        self.take(")")
        return Graph(name, inputs, outputs)

    def op(self) -> Op:
        line, results = self.line() + 1, tuple[Value, ...]()
        if self.peek(1) != "(":
            results = self.listed(self.value, ())
            self.take("=")
        operator = self.name()
        self.take("(")
        arguments = self.listed(self.argument, (";", ")"))
        coefficients = self.listed(self.polynomial, (")",)) if self.takes(";") else ()
        self.take(")")
        args = tuple(value for key, value in arguments if key is None)
        attrs = tuple((key, value) for key, value in arguments if key is not None)
        return Op(operator, args, attrs, coefficients, results, line)

    def table(self) -> Value:
        name = self.name()
        self.take(":")
        return Value(name, self.type())

    def value(self) -> Value:
        name = self.name()
        if self.untyped and self.peek() != ":":
            return Value(name, UNTYPED)
        self.take(":")
        return Value(name, self.type())

    def argument(self) -> tuple[str | None, Literal]:
        key = None
        if self.kind() == "name" and self.peek(1) == "=":
            key = self.name()
            self.take("=")
        return key, self.literal()

    def literal(self) -> Literal:
        if self.takes("["):
            self.depth += 1
            if self.depth > DEPTH:
                raise self.fail(f"lists nested at most {DEPTH} deep")
            items = self.listed(self.literal, ("]",))
            self.depth -= 1
            self.take("]")
            return items
        if self.kind() == "number":
            return self.number()
        if self.kind() == "string":
            return self.string()
        name = self.name()
        return WORDS[name] if name in WORDS else Ref(name)

    def string(self) -> str:
        text = self.of_kind("string")
        try:
            string = str(json.loads(text))
            string.encode()  # a surrogate without its pair has no UTF-8
        except ValueError as error:
            self.at -= 1
            raise self.fail("a string as JSON writes it") from error
        return string

    def polynomial(self) -> Polynomial:
        total = self.term(negative=self.takes("-"))
        while self.peek() in ("+", "-") or (self.kind() == "number" and self.peek().startswith("-")):
            total += self.term(negative=not self.takes("+") and self.takes("-"))
        return total

    def term(self, *, negative: bool) -> Polynomial:
        factor, names = 1.0, list[str]()
        if self.kind() == "number":
            factor = self.real()
        else:
            names.append(self.name())
        while self.takes("*"):
            names.append(self.name())
        return Polynomial.of({tuple(sorted(names)): -factor if negative else factor})

    def type(self) -> Type:
        dtype = self.name()
        if dtype == "scalar":
            return SCALAR
        if dtype != "text" and dtype not in DTYPES + FLOATS:
            raise self._error(f"unknown type {dtype[:80]}", self.line())
        return Type(dtype, self.shape())

    def shape(self) -> tuple[AnySize, ...]:
        self.take("[")
        shape = self.listed(self.size, ("]",))
        self.take("]")
        sizes = [size for size in shape if isinstance(size, int)]
        if min(sizes, default=0) < 0 or len(shape) > RANK or max(math.prod(sizes), *sizes, 0) > ELEMENTS:
            raise self.fail("a shape of integers of a sensible size")
        return shape

    def size(self) -> AnySize:
        total = self.extent(negative=self.takes("-"))
        while self.peek() in ("+", "-") or (self.kind() == "number" and self.peek().startswith("-")):
            total = total + self.extent(negative=not self.takes("+") and self.takes("-"))
        return total

    def extent(self, *, negative: bool) -> AnySize:
        factor = self.integer() if (starts_with_number := self.kind() == "number") else 1
        size: AnySize = 1 if starts_with_number and not self.takes("*") else Size.of(self.name())
        return (-factor if negative else factor) * size
