"""Print programs and parse them: ``parse(str(program)) == program``. The grammar stands at the head of ``ir.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TypeVar

from diffc.compiler.errors import ParseError
from diffc.compiler.ir.program import Graph, Guard, Input, Literal, Op, Polynomial, Program, Ref, Table, Type, Value

T = TypeVar("T")

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
WORDS: dict[str, Literal] = {"true": True, "false": False, "none": None}
RESERVED = (*WORDS, "inf", "nan", "program", "guard", "graph", "table", "return")
"""Words of the grammar, which name nothing."""

DEEPEST = 100
"""How many brackets may be open at once."""

TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf\b|nan\b))
      | (?P<name>[A-Za-z_][A-Za-z0-9_.]*)
      | (?P<mark>->|<=|>=|==|!=|[-+*<>=(){}\[\],:;])""",
    re.VERBOSE,
)


def parse(text: str) -> Program:
    """Read a program, or bare operations (a sketch: its inputs are what it reads, its outputs what it never reads).

    Raises `ParseError` with the line that is not in the grammar.
    """
    reader = _Reader(text)
    if reader.peek() == "program":
        program = reader.program()
        reader.end()
        return program
    ops = []
    while reader.peek():
        ops.append(reader.op())
    written = [value.name for op in ops for value in op.results]
    read = [name for op in ops for name in op.reads()]
    inputs = dict.fromkeys(name for name in read if name not in written)
    free = tuple(Input(name, Type("text", (1,))) for name in inputs)
    return Program("sketch", inputs=free, ops=tuple(ops), outputs=tuple(n for n in written if n not in read))


class _Reader:
    """Read tokens from left to right, one method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, self.at, self.depth = text, list[tuple[str, str, int]](), 0, 0
        position = 0
        while position < len(text):
            match = TOKEN.match(text, position)
            if match is None:
                raise self._error(f"unexpected character {text[position]!r}", position)
            if match.lastgroup != "space":
                self.tokens.append((match.lastgroup or "", match.group(), position))
            position = match.end()

    def _error(self, what: str, position: int) -> ParseError:
        number = self.text.count("\n", 0, position)
        lines = self.text.split("\n")
        line = lines[min(number, len(lines) - 1)].strip()
        return ParseError(f"program text: {what}", where=f"line {number + 1}: {line}", fix="see the grammar in ir.py")

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][1] if self.at + ahead < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def fail(self, wanted: str) -> ParseError:
        position = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text)
        return self._error(f"expected {wanted}, found {self.peek() or 'the end'}", position)

    def take(self, mark: str) -> None:
        if self.peek() != mark:
            raise self.fail(repr(mark))
        self.at += 1

    def takes(self, mark: str) -> bool:
        found = self.peek() == mark
        self.at += found
        return found

    def of_kind(self, kind: str) -> str:
        if self.kind() != kind:
            raise self.fail(f"a {kind}")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def name(self) -> str:
        return self.of_kind("name")

    def number(self) -> int | float:
        if len(self.peek()) > 4300:
            raise self.fail("a shorter number")
        text = self.of_kind("number")
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)

    def real(self) -> float:
        try:
            return float(self.number())
        except OverflowError as error:
            self.at -= 1
            raise self.fail("a smaller number") from error

    def end(self) -> None:
        if self.peek():
            raise self.fail("the end")

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
        self.take(")")
        self.take("{")
        guards, graphs, tables, ops = list[Guard](), list[Graph](), list[Table](), list[Op]()
        while self.peek() == "guard":
            guards.append(self.guard())
        while self.peek() == "graph":
            graphs.append(self.graph())
        while self.peek() == "table":
            tables.append(self.table())
        while self.peek() != "return":
            ops.append(self.op())
        self.take("return")
        outputs = self.listed(self.name, ("}",))
        self.take("}")
        return Program(name, inputs, tuple(guards), tuple(graphs), tuple(tables), tuple(ops), outputs)

    def input(self) -> Input:
        name = self.name()
        self.take(":")
        if self.takes("picture"):
            return Input(name, Type("float32", self.shape()), is_picture=True)
        return Input(name, self.type(), self.real() if self.takes("=") else None)

    def guard(self) -> Guard:
        self.take("guard")
        name = self.name()
        if self.peek() not in COMPARISONS:
            raise self.fail("a comparison")
        comparison = self.of_kind("mark")
        return Guard(name, comparison, self.real())

    def graph(self) -> Graph:
        self.take("graph")
        name = self.name()
        self.take("(")
        inputs = self.listed(self.value, (")",))
        self.take(")")
        self.take("->")
        self.take("(")
        outputs = self.listed(self.value, (")",))
        self.take(")")
        return Graph(name, inputs, outputs)

    def table(self) -> Table:
        self.take("table")
        name = self.name()
        self.take(":")
        return Table(name, self.type())

    def op(self) -> Op:
        results: tuple[Value, ...] = ()
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
        return Op(operator, args, attrs, coefficients, results)

    def value(self) -> Value:
        return Value(self.name(), self.type() if self.takes(":") else None)

    def argument(self) -> tuple[str | None, Literal]:
        if self.kind() == "name" and self.peek(1) == "=":
            key = self.name()
            self.take("=")
            return key, self.literal()
        return None, self.literal()

    def literal(self) -> Literal:
        if self.takes("["):
            self.depth += 1
            if self.depth > DEEPEST:
                raise self.fail("fewer brackets")
            items = self.listed(self.literal, ("]",))
            self.take("]")
            self.depth -= 1
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
            return str(json.loads(text))
        except json.JSONDecodeError as error:
            self.at -= 1
            raise self.fail(f"a string instead of {text}") from error

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
        return Type("scalar") if dtype == "scalar" else Type(dtype, self.shape())

    def shape(self) -> tuple[int, ...]:
        self.take("[")
        shape = self.listed(self.number, ("]",))
        self.take("]")
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise self.fail("a shape of integers")
        return tuple(int(size) for size in shape)
