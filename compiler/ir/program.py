"""Define the program: a straight line of operations on named values.

    program     = "program" NAME "(" [input {"," input}] ")" "{" {declaration} {operation} "return" NAME {"," NAME} "}"
    input       = NAME ":" type ["=" NUMBER] | NAME ":" "picture" shape
    declaration = "guard" NAME ("<" | "<=" | ">" | ">=" | "==" | "!=") NUMBER
                | "graph" NAME "(" [value {"," value}] ")" "->" "(" [value {"," value}] ")"
                | "table" NAME ":" type
    operation   = [value {"," value} "="] NAME "(" [argument {"," argument}] [";" polynomial {"," polynomial}] ")"
    value       = NAME [":" type]
    argument    = [NAME "="] literal
    literal     = NAME | NUMBER | STRING | "true" | "false" | "none" | "[" [literal {"," literal}] "]"
    polynomial  = ["-"] term {("+" | "-") term}
    term        = NUMBER {"*" NAME} | NAME {"*" NAME}
    type        = DTYPE shape | "text" "[" INTEGER "]" | "scalar"
    shape       = "[" [INTEGER {"," INTEGER}] "]"

A program stands for one call of a sampler. Its inputs are texts, scalars, pictures in [0, 1], which operations
read as float32[batch, channels, height, width], and other tensors; its graphs are pure tensor functions, called by
port; its tables are constant tensors. An operator is the name of a graph, one of `BUILTINS`, or (before `fuse_linear`)
an operator of ATen such as ``aten.mul.Tensor``:

    ids, mask = tokenize(prompt, tokenizer="tokenizer", length=77, pad=0)    the mask is 1 where the text is
    n = noise()                                the next draw of the seed's normal numbers, in program order
    x = linear(a, b; 0.5, guidance_scale)      0.5·a + guidance_scale·b; one coefficient more is a constant term
    u, c = split(y, axis=0)                    equal parts
    y = concat(u, c, axis=0)
    step(x; 2.0)                               a step of the sampler is done; its latents are linear(x; 2.0)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUILTINS = ("tokenize", "noise", "linear", "split", "concat", "step")

FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Type:
    """Describe a tensor (its element type and shape), a batch of texts or a scalar of the request."""

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def is_float(self) -> bool:
        """Say whether elements are floating-point numbers."""
        return self.dtype in FLOATS


SCALAR = Type("scalar")


@dataclass(frozen=True)
class Value:
    """Name a value; its type is None only in a sketch."""

    name: str
    type: Type | None = None


@dataclass(frozen=True)
class Ref:
    """Refer to a value by its name."""

    name: str


Literal = Ref | bool | int | float | str | None | tuple["Literal", ...]


@dataclass(frozen=True)
class Polynomial:
    """Hold a polynomial in the scalars of the request: pairs of a monomial (sorted names) and its factor, sorted."""

    terms: tuple[tuple[tuple[str, ...], float], ...] = ()

    @staticmethod
    def of(terms: Mapping[tuple[str, ...], float]) -> Polynomial:
        """Make the normal form: no zero factors, monomials in order."""
        return Polynomial(tuple(sorted((names, factor) for names, factor in terms.items() if factor != 0.0)))

    @staticmethod
    def constant(value: float) -> Polynomial:
        """Make a polynomial of degree zero."""
        return Polynomial.of({(): float(value)})

    @property
    def is_constant(self) -> bool:
        """Say whether no scalar occurs."""
        return all(not names for names, _ in self.terms)

    @property
    def size(self) -> float:
        """Sum the magnitudes of the factors: what a rounding error is relative to."""
        return sum(abs(factor) for _, factor in self.terms)

    def __add__(self, other: Polynomial) -> Polynomial:
        total = dict(self.terms)
        for names, factor in other.terms:
            total[names] = total.get(names, 0.0) + factor
        return Polynomial.of(total)

    def __mul__(self, other: Polynomial) -> Polynomial:
        product: dict[tuple[str, ...], float] = {}
        for mine, a in self.terms:
            for theirs, b in other.terms:
                names = tuple(sorted(mine + theirs))
                product[names] = product.get(names, 0.0) + a * b
        return Polynomial.of(product)

    def __call__(self, scalars: Mapping[str, float]) -> float:
        """Evaluate at the scalars of a request."""
        return float(sum(factor * np.prod([scalars[name] for name in names]) for names, factor in self.terms))


@dataclass(frozen=True)
class Op:
    """Apply an operator; see the grammar for what each one takes."""

    operator: str
    args: tuple[Literal, ...] = ()
    attrs: tuple[tuple[str, Literal], ...] = ()
    coefficients: tuple[Polynomial, ...] = ()
    results: tuple[Value, ...] = ()

    def attr(self, name: str, default: Literal = None) -> Literal:
        """Look up a keyword argument."""
        return dict(self.attrs).get(name, default)

    def reads(self) -> Iterator[str]:
        """Yield the names of the values that are read, in order, with repetition; scalars in coefficients come last."""
        for literal in (*self.args, *(value for _, value in self.attrs)):
            yield from _names(literal)
        for coefficient in self.coefficients:
            for names, _ in coefficient.terms:
                yield from names

    def renamed(self, names: Mapping[str, str]) -> Op:
        """Read other values instead."""
        return replace(
            self,
            args=tuple(_renamed(a, names) for a in self.args),
            attrs=tuple((key, _renamed(value, names)) for key, value in self.attrs),
        )


def _has_unused_mask(op: Op, needed: set[str]) -> bool:
    return op.operator == "tokenize" and len(op.results) == 2 and op.results[1].name not in needed


def _names(literal: Literal) -> Iterator[str]:
    if isinstance(literal, Ref):
        yield literal.name
    elif isinstance(literal, tuple):
        for item in literal:
            yield from _names(item)


def _renamed(literal: Literal, names: Mapping[str, str]) -> Literal:
    if isinstance(literal, Ref):
        return Ref(names.get(literal.name, literal.name))
    if isinstance(literal, tuple):
        return tuple(_renamed(item, names) for item in literal)
    return literal


@dataclass(frozen=True)
class Input:
    """Declare what a request gives: ``text[batch]``, a scalar with its default, a picture in [0, 1], or a tensor."""

    name: str
    type: Type
    default: float | None = None
    is_picture: bool = False


@dataclass(frozen=True)
class Guard:
    """State a condition on a scalar without which the program is not what the pipeline would have done."""

    scalar: str
    comparison: str
    bound: float


@dataclass(frozen=True)
class Graph:
    """Declare a pure tensor function; ``body`` is its ``torch.export.ExportedProgram``, absent after parsing.

    ``stage`` says which part of its component a graph was split off for, ``request`` or ``request_step``; ``hidden``
    names the ports that lead to other pieces of the component, where a graph was cut into pieces.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    body: Any = field(default=None, compare=False, repr=False)
    component: str = field(default="", compare=False)
    stage: str = field(default="", compare=False)
    hidden: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True)
class Table:
    """Declare a constant tensor; ``data`` is absent after parsing."""

    name: str
    type: Type
    data: NDArray[Any] | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(data: NDArray[Any]) -> Table:
        """Make a table that is named by what it holds."""
        type_ = Type(str(data.dtype), data.shape)
        digest = hashlib.sha256(repr(type_).encode() + data.tobytes()).hexdigest()[:10]
        return Table(f"t{digest}", type_, data)


@dataclass(frozen=True)
class Program:
    """Hold a whole sampler. ``str`` prints it, ``diffc.compiler.ir.parse.parse`` reads it back."""

    name: str
    inputs: tuple[Input, ...] = ()
    guards: tuple[Guard, ...] = ()
    graphs: tuple[Graph, ...] = ()
    tables: tuple[Table, ...] = ()
    ops: tuple[Op, ...] = ()
    outputs: tuple[str, ...] = ()

    def __str__(self) -> str:

        return print_program(self)

    def graph(self, name: str) -> Graph | None:
        """Look up a graph, or None where the name is a built-in's or ATen's."""
        return next((g for g in self.graphs if g.name == name), None)

    def types(self) -> dict[str, Type | None]:
        """Map every value to its type."""
        declared: dict[str, Type | None] = {item.name: item.type for item in self.inputs}
        declared |= {table.name: table.type for table in self.tables}
        return declared | {value.name: value.type for op in self.ops for value in op.results}

    def live(self) -> Program:
        """Drop what no output and no step needs: operations, graphs, tables and inputs."""
        needed, kept = set(self.outputs), []
        for op in reversed(self.ops):
            if op.operator in ("step", "noise") or any(value.name in needed for value in op.results):
                needed.update(op.reads())
                kept.append(replace(op, results=op.results[:1]) if _has_unused_mask(op, needed) else op)
        called = {op.operator for op in kept}
        return replace(
            self,
            inputs=tuple(i for i in self.inputs if i.name in needed or i.name in {g.scalar for g in self.guards}),
            graphs=tuple(g for g in self.graphs if g.name in called),
            tables=tuple(t for t in self.tables if t.name in needed),
            ops=tuple(reversed(kept)),
        )


class Names:
    """Give names that nothing has yet."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken)

    def new(self, stem: str) -> str:
        """Number a name."""
        name = next(name for at in range(len(self.taken) + 1) if (name := f"{stem}{at}") not in self.taken)
        self.taken.add(name)
        return name


def print_program(program: Program) -> str:
    """Write a program in the grammar of ``ir.py``."""
    lines = [f"program {program.name}({', '.join(map(_input, program.inputs))}) {{"]
    lines += [f"    guard {g.scalar} {g.comparison} {_literal(g.bound)}" for g in program.guards]
    lines += [f"    graph {g.name}({_values(g.inputs)}) -> ({_values(g.outputs)})" for g in program.graphs]
    lines += [f"    table {t.name}: {print_type(t.type)}" for t in program.tables]
    lines += [f"    {print_op(op)}" for op in program.ops]
    return "\n".join([*lines, f"    return {', '.join(program.outputs)}", "}"]) + "\n"


def print_op(op: Op) -> str:
    """Write one operation."""
    arguments = [*map(_literal, op.args), *(f"{key}={_literal(value)}" for key, value in op.attrs)]
    inside = ", ".join(arguments)
    if op.coefficients:
        inside += "; " + ", ".join(map(print_polynomial, op.coefficients))
    call = f"{op.operator}({inside})"
    return f"{_values(op.results)} = {call}" if op.results else call


def print_polynomial(polynomial: Polynomial) -> str:
    """Write a polynomial, ``0.0`` when it has no terms."""
    terms = ["*".join([repr(factor), *names]) for names, factor in polynomial.terms]
    return " + ".join(terms) or "0.0"


def print_type(type_: Type) -> str:
    """Write a type."""
    return "scalar" if type_.dtype == "scalar" else f"{type_.dtype}{list(type_.shape)}"


def _input(item: Input) -> str:
    default = "" if item.default is None else f" = {_literal(item.default)}"
    kind = f"picture{list(item.type.shape)}" if item.is_picture else print_type(item.type)
    return f"{item.name}: {kind}{default}"


def _values(values: tuple[Value, ...]) -> str:
    return ", ".join(v.name if v.type is None else f"{v.name}: {print_type(v.type)}" for v in values)


def _literal(literal: Literal) -> str:
    match literal:
        case Ref(name):
            return name
        case tuple():
            return f"[{', '.join(map(_literal, literal))}]"
        case None | bool():
            return str(literal).lower()
        case str():
            return json.dumps(literal)
        case _:
            return repr(literal)
