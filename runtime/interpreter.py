"""Execute a program: a page of operations, and a session of an engine for each graph.

What a graph makes of the request alone is remembered for the next one. A graph that works ahead for all steps of a
loop gives its memory back before the loop starts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import numpy as np

from diffc.runtime.bundle.open import Bundle
from diffc.runtime.engines.registry import Array, Session, open_graph, reason
from diffc.runtime.errors import BundleError, RequestError
from diffc.runtime.program.program import Graph, Op, Program, Ref, Value, constant
from diffc.runtime.prompt_cache import PromptCache

Values = dict[str, Any]  # name -> tensor, or the texts of the request
OnStep = Callable[[Op, Values], None]


class Interpreter:
    """Execute programs of one bundle. Sessions are made when first needed, and kept; threads may share them.

    ``engines`` says who has computed so far.
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
        given: Mapping[str, Any],
        scalars: Mapping[str, float],
        *,
        ops: Iterable[Op] | None = None,
        outputs: Iterable[str] | None = None,
        on_step: OnStep | None = None,
    ) -> Values:
        """Execute ``ops``, by default all of the program, and return ``outputs``, by default those of the program.

        ``given`` holds the texts, the draws of ``noise`` and whatever else ``ops`` read without defining it. A value is
        freed after its last use. ``on_step`` is called after every step; what it raises ends the run.
        """
        ops = program.ops if ops is None else tuple(ops)
        outputs = program.outputs if outputs is None else tuple(outputs)
        values: Values = {table.name: self.bundle.tables[table.name] for table in program.tables} | dict(given)
        dead, early = _dead_after(ops, keep=set(outputs)), _early(program)
        with np.errstate(over="ignore", invalid="ignore"):
            for at, op in enumerate(ops):
                if op.operator == "step":
                    if on_step is not None:
                        on_step(op, values)
                else:
                    self._execute(program, op, values, scalars, early)
                for name in dead[at]:
                    values.pop(name, None)
        return {name: values[name] for name in outputs}

    def _execute(
        self, program: Program, op: Op, values: Values, scalars: Mapping[str, float], early: Container[str]
    ) -> None:
        if op.operator in program.graphs:
            found = self._call(program.graphs[op.operator], op, values, remember=op.results[0].name in early)
        elif op.operator == "tokenize":
            found = self._tokenize(op, values)
        else:
            found = ARITHMETIC[op.operator](op, values, scalars)
        for result, value in zip(op.results, found, strict=True):
            values[result.name] = value

    def _tokenize(self, op: Op, values: Values) -> Iterable[Array]:
        options: dict[str, Any] = dict(op.attrs)
        encode = self.bundle.tokenizers[options.pop("tokenizer")]
        return [
            _cast(result, found)
            for result, found in zip(op.results, encode(values[_first(op)], **options), strict=False)
        ]

    def _call(self, graph: Graph, op: Op, values: Values, *, remember: bool) -> Iterable[Array]:
        feeds = {}
        for port in graph.inputs:
            given = op.attrs[port.name]
            array = values[given.name] if isinstance(given, Ref) else constant(given, port.type)
            feeds[port.name] = np.asarray(array, order="C")
        if not remember:
            return self._computed(graph, op, feeds)
        return self.cache.get(graph.name, feeds, lambda: self._computed(graph, op, feeds))

    def _computed(self, graph: Graph, op: Op, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            found = self.session(graph).run(feeds)
        except BundleError:
            raise
        except Exception as error:  # the errors of engines have no class in common
            raise BundleError(f"graph {graph.name} failed: {reason(error)}", where=op.source) from error
        for port, array in zip(graph.outputs, found, strict=True):
            if (str(array.dtype), array.shape) != (port.type.dtype, port.type.shape):
                what = f"graph {graph.name} gave {array.dtype}{list(array.shape)} for {port.name}: {port.type}"
                raise BundleError(what, where=op.source, fix="build the bundle again")
        if self.bundle.manifest.stage(graph.name) == "request_step":
            with self._lock:
                self._sessions.pop(graph.name, None)
        return found

    def session(self, graph: Graph) -> Session:
        """Give the session of a graph, opening it the first time. Raises `BundleError`."""
        with self._lock:
            if graph.name not in self._sessions:
                self._sessions[graph.name] = self._opened(graph)
            return self._sessions[graph.name]

    def _opened(self, graph: Graph) -> Session:
        session, ports = open_graph(self.bundle, graph.name, self._threads), {port.name for port in graph.inputs}
        named = all(len(names & ports) == 1 for names in session.inputs)
        if not named or (len(session.inputs), session.outputs) != (len(ports), len(graph.outputs)):
            where = self.bundle.manifest.graphs[graph.name]
            raise BundleError(f"{where} has other ports than the program says", where=where, fix="build it again")
        self.engines.add(session.engine)
        return session


def linear(op: Op, values: Mapping[str, Array], scalars: Mapping[str, float]) -> Array:
    """Sum operands times coefficients, and the constant that one more coefficient is, in float32 or float64."""
    operands = [values[name] for name in op.reads()]
    wide = any(operand.dtype == np.float64 for operand in operands) or any(
        r.type.dtype == "float64" for r in op.results
    )
    dtype = np.dtype(np.float64 if wide else np.float32).type
    shape = op.results[0].type.shape if op.results else np.broadcast_shapes(*(operand.shape for operand in operands))
    factors = [dtype(coefficient(scalars)) for coefficient in op.coefficients]
    total = np.full(shape, factors[-1] if len(factors) > len(operands) else 0, dtype)
    for factor, operand in zip(factors, operands, strict=False):
        total += factor * operand.astype(dtype, copy=False)
    return total


ARITHMETIC: dict[str, Callable[[Op, Values, Mapping[str, float]], Iterable[Array]]] = {
    "noise": lambda op, values, _: [values[op.results[0].name]],
    "linear": lambda op, values, scalars: [_cast(op.results[0], linear(op, values, scalars))],
    "split": lambda op, values, _: np.split(values[_first(op)], len(op.results), axis=_axis(op)),
    "concat": lambda op, values, _: [np.concatenate([values[name] for name in op.reads()], axis=_axis(op))],
}


def tail(program: Program) -> tuple[Op, ...]:
    """List the operations after the last step: what makes a picture of latents."""
    steps = [at for at, op in enumerate(program.ops) if op.operator == "step"]
    return program.ops[steps[-1] + 1 :] if steps else ()


def preview(
    interpreter: Interpreter, program: Program, step: Op, values: Values, scalars: Mapping[str, float]
) -> Callable[[], Array]:
    """Give a function that runs the tail with the latents of ``step`` in place of those of the last step.

    The last step says ``step(a, b; p, q)``. One operand is made the latents over its coefficient, the others zero; that
    is exact where there is one, or where the tail reads them only as ``linear(a, b, …; k·p, k·q, …)``.
    """
    ops = tail(program)
    last = next(op for op in reversed(program.ops) if op.operator == "step")
    weights, offset = _weights(last, scalars)
    made = {value.name for op in ops for value in op.results}
    needed = {name for op in ops for name in op.reads()} - made - weights.keys()
    kept = {name: value for name, value in values.items() if name in needed | made}  # of what is made: the noise
    latents = linear(step, values, scalars)

    def run() -> Array:
        if needed - kept.keys() or not (len(weights) == 1 or _proportional(ops, weights, scalars)):
            raise RequestError(
                "the latents of this step make no picture alone", fix="use this program without previews"
            )
        types = {name: program.types[name] for name in weights}
        chosen = max(weights, key=lambda name: (types[name].shape == latents.shape, abs(weights[name])))
        if weights[chosen] == 0.0 or types[chosen].shape != latents.shape:
            raise RequestError(
                "the latents of this step are not like the last", fix="use this program without previews"
            )
        replaced = {name: np.zeros(type_.shape, type_.dtype) for name, type_ in types.items()}
        replaced[chosen] = ((latents - offset) / weights[chosen]).astype(types[chosen].dtype)
        pictures: Array = interpreter.run(program, kept | replaced, scalars, ops=ops)[program.outputs[0]]
        return pictures

    return run


def _weights(op: Op, scalars: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Give the factor of each operand of a linear combination, and its constant term."""
    names, factors = list(op.reads()), [coefficient(scalars) for coefficient in op.coefficients]
    weights = dict.fromkeys(names, 0.0)
    for name, factor in zip(names, factors, strict=False):
        weights[name] += factor
    return weights, factors[-1] if len(factors) > len(names) else 0.0


def _proportional(ops: Iterable[Op], weights: Mapping[str, float], scalars: Mapping[str, float]) -> bool:
    wanted = np.array(list(weights.values()))
    for op in ops:
        if weights.keys().isdisjoint(op.reads()):
            continue
        read, _ = _weights(op, scalars)
        found = np.array([read.get(name, 0.0) for name in weights])
        same = np.allclose(found * (wanted @ wanted), wanted * (wanted @ found), rtol=1e-6, atol=0)
        if op.operator != "linear" or not same:
            return False
    return True


def _early(program: Program) -> set[str]:
    """List the values that a request decides without its noise."""
    late = set[str]()
    for op in program.ops:
        if op.operator == "noise" or not late.isdisjoint(op.reads()):
            late |= {value.name for value in op.results}
    return set(program.types) - late


def _dead_after(ops: tuple[Op, ...], keep: set[str]) -> list[list[str]]:
    """List, for each operation, the values that nothing after it reads."""
    seen, dead = set(keep), list[list[str]]()
    for op in reversed(ops):
        names = {*op.reads(), *(value.name for value in op.results)}
        dead.append(sorted(names - seen))
        seen |= names
    return dead[::-1]


def _cast(result: Value, array: Array) -> Array:
    return array.astype(result.type.dtype, copy=False)


def _first(op: Op) -> str:
    return next(op.reads())


def _axis(op: Op) -> int:
    axis = op.attrs["axis"]
    assert isinstance(axis, int)
    return axis
