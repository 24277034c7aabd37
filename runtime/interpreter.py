"""Execute a program: a page of operations, and a session of an engine for each graph.

Three rules are about memory, and change no value. Results of graphs that depend on the request alone are cached for
later requests. The session of a graph that the manifest puts into stage ``request_step``, which computes ahead for all
steps, is closed after its call, so that its weights leave memory before the loop. Where memory is short for the weights
of a graph that is to be opened, others are closed before it, those first that the run does not call any more, such as
that of a text encoder: the next request opens them again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np

from diffc.runtime.bundle.manifest import ONNX
from diffc.runtime.bundle.onnx_external_data import external_bytes
from diffc.runtime.bundle.open import Bundle
from diffc.runtime.bundle.tokenizer import tokenize
from diffc.runtime.engines.registry import open_graph, split_target
from diffc.runtime.engines.session import Array, Session, reason
from diffc.runtime.errors import BundleError
from diffc.runtime.memory import free_memory
from diffc.runtime.precisions import PRECISIONS
from diffc.runtime.program.constant import constant
from diffc.runtime.program.program import Graph, Op, Program, Ref, Type, Value, sizes_of_call
from diffc.runtime.program.texts import TEXT_OPERATORS, transform
from diffc.runtime.prompt_cache import PromptCache

Values = dict[str, Any]  # name -> tensor, or the texts of the request
OnStep = Callable[[Op, Values], None]

WITH_ACTIVATIONS = 1.5
"""Memory of a graph for each byte of its weights, which engines hold in float32 where they are stored in 16 bits."""


class Interpreter:
    """Execute programs of one bundle. Sessions open at the first call of their graph; threads may share them.

    ``engines`` are the names of the engines that have been opened so far.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        self.bundle = bundle
        self._threads = threads or 0
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self.cache = PromptCache()
        self.engines: set[str] = set()

    def run(
        self,
        program: Program,
        inputs: Mapping[str, Any],
        scalars: Mapping[str, float],
        *,
        ops: Iterable[Op] | None = None,
        outputs: Iterable[str] | None = None,
        on_step: OnStep | None = None,
    ) -> Values:
        """Execute ``ops``, by default all of the program, and return ``outputs``, by default those of the program.

        ``inputs`` holds the texts, the values of ``noise`` and all else that ``ops`` read without defining it. A value
        is freed after its last use. ``on_step`` is called after every step; an exception in it ends the run.
        """
        ops = program.ops if ops is None else tuple(ops)
        outputs = program.outputs if outputs is None else tuple(outputs)
        values: Values = {table.name: self.bundle.tables[table.name] for table in program.tables} | dict(inputs)
        lengths = {length.name for length in program.lengths}
        dead, early = _dead_after(ops, keep=lengths.union(outputs)), _early(program)
        graphs = {graph.name: graph for graph in program.graphs}
        with np.errstate(over="ignore", invalid="ignore"):
            for at, op in enumerate(ops):
                if op.operator == "step":
                    if on_step is not None:
                        on_step(op, values)
                elif op.operator == "tokenize":
                    values |= tokenize(op, self.bundle.tokenizers, values[_first(op)], program.lengths)
                else:
                    if op.operator in graphs:
                        self._make_space(op.operator, ops[at:])
                    self._execute(graphs, op, values, scalars, early)
                for name in dead[at]:
                    values.pop(name, None)
        return {name: values[name] for name in outputs}

    def _execute(
        self,
        graphs: Mapping[str, Graph],
        op: Op,
        values: Values,
        scalars: Mapping[str, float],
        early: Container[str],
    ) -> None:
        results: Iterable[Any]
        if op.operator in graphs:
            results = self._call(graphs[op.operator], op, values, remember=op.results[0].name in early)
        elif op.operator in TEXT_OPERATORS:
            results = [[transform(op.operator, dict(op.attrs), t, self._tokens) for t in values[_first(op)]]]
        else:
            results = ARITHMETIC[op.operator](op, values, scalars)
        for result, value in zip(op.results, results, strict=True):
            values[result.name] = value

    def _tokens(self, tokenizer: str, text: str) -> list[str]:
        return self.bundle.tokenizers[tokenizer].tokens(text)

    def _call(self, graph: Graph, op: Op, values: Values, *, remember: bool) -> Iterable[Array]:
        feeds, arguments = {}, dict(op.attrs)
        lengths = values | sizes_of_call(op, graph, {name: values[name].shape for name in op.operands()})
        for port in graph.inputs:
            literal = arguments[port.name]
            array = values[literal.name] if isinstance(literal, Ref) else constant(literal, port.type.at(lengths))
            feeds[port.name] = np.asarray(array, order="C")
        types = [value.type.at(values) for value in op.results]
        if not remember:
            return self._compute(graph, op, feeds, types)
        return self.cache.get(graph.name, feeds, lambda: self._compute(graph, op, feeds, types))

    def _compute(self, graph: Graph, op: Op, feeds: Mapping[str, Array], types: Iterable[Type]) -> list[Array]:
        session = self.session(graph)
        try:
            results = session.run(feeds)
        except BundleError:
            raise
        except Exception as error:  # the errors of engines have no class in common
            what = f"graph {graph.name} failed in {session.engine}: {reason(error)}"
            fix = "free memory, and run `diffc doctor` on the bundle; if it fails again, build it for another target"
            raise BundleError(what, where=op.where, fix=fix) from error
        for port, type_, array in zip(graph.outputs, types, results, strict=True):
            if (str(array.dtype), array.shape) != (type_.dtype, type_.shape):
                what = f"graph {graph.name} returned {array.dtype}{list(array.shape)} for {port.name}: {type_}"
                raise BundleError(what, where=op.where, fix="build the bundle again")
        if self.bundle.manifest.stage(graph.name) == "request_step":
            with self._lock:
                self._sessions.pop(graph.name, None)
        return results

    def session(self, graph: Graph) -> Session:
        """Return the session of a graph, opened at its first call. Raises `BundleError`."""
        with self._lock:
            if graph.name not in self._sessions:
                self._sessions[graph.name] = self._open(graph)
            return self._sessions[graph.name]

    def _make_space(self, graph: str, ops: Iterable[Op]) -> None:
        """Close sessions while memory is short to open that of a graph, those first that ``ops`` call last or never."""
        if graph in self._sessions or not self._sessions or self.bundle.manifest.kind(graph) != ONNX:
            return
        precision = PRECISIONS.get(split_target(self.bundle.manifest.target)[1])
        is_half = precision is not None and precision.storage != "float32"
        needed = WITH_ACTIVATIONS * (1 + is_half) * external_bytes(self.bundle.graph(graph))
        calls = {op.operator: -at for at, op in reversed([*enumerate(ops)])}
        with self._lock:
            for name in sorted(self._sessions, key=lambda name: calls.get(name, -math.inf)):
                free = free_memory()
                if free is None or free >= needed:
                    return
                self._sessions.pop(name)

    def _open(self, graph: Graph) -> Session:
        session, ports = open_graph(self.bundle, graph.name, self._threads), {port.name for port in graph.inputs}
        have_names = all(len(names & ports) == 1 for names in session.inputs)
        if not have_names or (len(session.inputs), session.outputs) != (len(ports), len(graph.outputs)):
            where = self.bundle.manifest.graphs[graph.name]
            raise BundleError(f"{where} has other ports than the program declares", where=where, fix="build it again")
        self.engines.add(session.engine)
        return session


def linear(op: Op, values: Mapping[str, Array], scalars: Mapping[str, float]) -> Array:
    """Compute the sum of operands times coefficients, in float64 if an operand or the result is, else in float32.

    One coefficient more than there are operands is a constant term.
    """
    operands = [values[name] for name in op.operands()]
    wide = any(operand.dtype == np.float64 for operand in operands) or any(
        r.type.dtype == "float64" for r in op.results
    )
    dtype = np.dtype(np.float64 if wide else np.float32).type
    shape = (
        op.results[0].type.at(values).fixed
        if op.results
        else np.broadcast_shapes(*(operand.shape for operand in operands))
    )
    factors = [dtype(coefficient(scalars)) for coefficient in op.coefficients]
    total = np.full(shape, factors[-1] if len(factors) > len(operands) else 0, dtype)
    for factor, operand in zip(factors, operands, strict=False):
        total += factor * operand.astype(dtype, copy=False)
    return total


ARITHMETIC: dict[str, Callable[[Op, Values, Mapping[str, float]], Iterable[Array]]] = {
    "noise": lambda op, values, _: [values[op.results[0].name]],
    "linear": lambda op, values, scalars: [_cast(op.results[0], linear(op, values, scalars))],
    "split": lambda op, values, _: np.split(values[_first(op)], len(op.results), axis=_axis(op)),
    "concat": lambda op, values, _: [np.concatenate([values[name] for name in op.operands()], axis=_axis(op))],
}


def _early(program: Program) -> set[str]:
    """List the values that depend on no noise."""
    late = set[str]()
    for op in program.ops:
        if op.operator == "noise" or not late.isdisjoint(op.operands()):
            late |= {value.name for value in op.results}
    return set(program.types()) - late


def _dead_after(ops: tuple[Op, ...], keep: set[str]) -> list[list[str]]:
    """List, for each operation, the values that no later one reads."""
    seen, dead = set(keep), list[list[str]]()
    for op in reversed(ops):
        names = {*op.operands(), *(value.name for value in op.results)}
        dead.append(sorted(names - seen))
        seen |= names
    return dead[::-1]


def _cast(result: Value, array: Array) -> Array:
    return array.astype(result.type.dtype, copy=False)


def _first(op: Op) -> str:
    return next(op.operands())


def _axis(op: Op) -> int:
    axis = op.attr("axis")
    assert isinstance(axis, int)
    return axis
