"""Extend the definition of programs in ``runtime/program`` by bodies of graphs, stages, data of tables, and facts.

``runtime/program/program.py`` starts with the grammar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from diffc.runtime.errors import VerifyError
from diffc.runtime.program import program as executable
from diffc.runtime.program.facts import Facts
from diffc.runtime.program.polynomial import Polynomial
from diffc.runtime.program.program import (
    BUILTINS,
    FLOATS,
    NOISE_KINDS,
    SCALAR,
    UNTYPED,
    Guard,
    Input,
    Length,
    Literal,
    Op,
    Ref,
    Type,
    Value,
)
from diffc.runtime.program.size import Size

__all__ = [
    "BUILTINS",
    "FLOATS",
    "SCALAR",
    "TOKENIZER_CALLS",
    "UNTYPED",
    "Graph",
    "Guard",
    "Input",
    "Length",
    "Literal",
    "NOISE_KINDS",
    "Names",
    "Op",
    "Polynomial",
    "Program",
    "Ref",
    "Size",
    "Table",
    "Type",
    "Value",
    "require_fixed_sizes",
]

TOKENIZER_CALLS = ("tokenize", "expand")
"""The operations that name a tokenizer."""

ARITHMETIC = "arithmetic"
"""The component of graphs of a pipeline's own arithmetic, between the calls of its components."""


@dataclass(frozen=True)
class Graph(executable.Graph):
    """Declare a pure tensor function; ``body`` is its ``torch.export.ExportedProgram``, absent after parsing.

    ``stage`` is the part of its component that the graph was split off for, ``request`` or ``request_step``; ``hidden``
    names the ports that lead to other parts of the component, where a graph was partitioned.
    """

    body: Any = field(default=None, compare=False, repr=False)
    component: str = field(default="", compare=False)
    stage: str = field(default="", compare=False)
    hidden: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True)
class Table(Value):
    """Declare a constant tensor; ``data`` is absent after parsing."""

    data: NDArray[Any] | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(data: NDArray[Any]) -> Table:
        """Build a table that is named by the digest of its content."""
        type_ = Type(str(data.dtype), data.shape)
        digest = hashlib.sha256(repr(type_).encode() + data.tobytes()).hexdigest()[:10]
        return Table(f"t{digest}", type_, data)


@dataclass(frozen=True)
class Program(executable.Program):
    """Hold one sampler with its graphs' bodies and its tables' data.

    There are ``facts`` if it was traced from a pipeline, and ``tokenizers`` by name if `capture` returned it.
    """

    graphs: tuple[Graph, ...] = ()
    tables: tuple[Table, ...] = ()
    facts: Facts | None = field(default=None, compare=False, repr=False)
    tokenizers: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def graph(self, name: str) -> Graph | None:
        """Return a graph, or None where the name is a built-in's or ATen's."""
        return next((g for g in self.graphs if g.name == name), None)

    @property
    def called_tokenizers(self) -> set[str]:
        """Return the names of the tokenizers that operations on texts call."""
        return {str(op.attr("tokenizer")) for op in self.ops if op.operator in TOKENIZER_CALLS}

    def live(self) -> Program:
        """Drop operations, graphs, tables and inputs that neither an output nor a step needs."""
        needed, live = set(self.outputs), list[Op]()
        for op in reversed(self.ops):
            if _is_kept(op) or any(name in needed for name in op.defines()):
                live.append(replace(op, results=op.results[:1]) if _has_unused_mask(op, needed) else op)
                needed.update(op.reads(), op.defines(), *(value.type.lengths for value in op.results))
        called = {op.operator for op in live}
        graphs = tuple(g for g in self.graphs if g.name in called)
        needed.update(name for g in graphs for port in (*g.inputs, *g.outputs) for name in port.type.lengths)
        return replace(
            self,
            inputs=tuple(i for i in self.inputs if i.name in needed or i.name in {g.scalar for g in self.guards}),
            graphs=graphs,
            tables=tuple(t for t in self.tables if t.name in needed),
            ops=tuple(reversed(live)),
            lengths=tuple(length for length in self.lengths if length.name in needed),
        )


def _is_kept(op: Op) -> bool:
    """Return whether an operation is needed though nothing reads its results: noise is the next of a generator."""
    return op.operator == "step" or (op.operator == "noise" and op.attr("terms") is None)


def _has_unused_mask(op: Op, needed: set[str]) -> bool:
    return op.operator == "tokenize" and len(op.results) == 2 and op.results[1].name not in needed


def require_fixed_sizes(graphs: Iterable[Graph], user: str) -> None:
    """Raise `VerifyError` where a port of a graph has an open size, which ``user`` does not serve."""
    for graph in graphs:
        for port in (*graph.inputs, *graph.outputs):
            if port.type.lengths:
                what = f"{user} serve fixed sizes only, and each request decides the size of {port}"
                fix = "leave them out, or build for ort-fp32, ov-fp32, ort-bf16 or ov-bf16"
                raise VerifyError(what, where=f"graph {graph.name}", fix=fix)


class Names:
    """Generate names that are not taken yet."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken)

    def new(self, stem: str) -> str:
        """Return the first free name among the stem's numbered ones, and take it."""
        name = next(name for at in range(len(self.taken) + 1) if (name := f"{stem}{at}") not in self.taken)
        self.taken.add(name)
        return name
