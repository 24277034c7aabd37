"""Check that a program is legal: run after every pass, and on whatever is read from outside."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from diffc.compiler.errors import VerifyError
from diffc.compiler.ir.parse import COMPARISONS, RESERVED
from diffc.compiler.ir.program import BUILTINS, FLOATS, Graph, Literal, Op, Program, Ref, Type, print_op

DTYPES = (*FLOATS, "int64", "int32", "int8", "uint8", "bool")

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


def verify(program: Program) -> Program:
    """Return the program, or raise `VerifyError` naming the rule and the operation that breaks it."""
    _names(program)
    types = _declared(program)
    for guard in program.guards:
        if types.get(guard.scalar) != Type("scalar") or guard.comparison not in COMPARISONS:
            raise VerifyError(f"a guard on {guard.scalar}, which is no scalar input", where=program.name)
    graphs = {graph.name: graph for graph in program.graphs}
    for op in program.ops:
        _reads_are_defined(op, types)
        _results_are_new(op, types)
        _coefficients(op, types)
        if op.operator in graphs:
            _call(op, graphs[op.operator], types)
        elif op.operator in BUILTINS:
            _builtin(op, types)
        elif not op.operator.startswith("aten."):
            raise VerifyError(f"{op.operator} is no built-in and no graph of the program", where=print_op(op))
        types |= {value.name: value.type for value in op.results if value.type}
    if not program.outputs:
        raise VerifyError("the program returns nothing", where=program.name)
    for name in program.outputs:
        if name not in types:
            raise VerifyError(f"the program returns {name}, which is not defined", where=program.name)
    return program


def _names(program: Program) -> None:
    """Check that every name can be printed and parsed, and that a graph's ports can be told apart."""
    ports = [port.name for graph in program.graphs for port in (*graph.inputs, *graph.outputs)]
    results = [value.name for op in program.ops for value in op.results]
    declared = [item.name for item in program.inputs] + [graph.name for graph in program.graphs]
    declared += [table.name for table in program.tables]
    for name in (program.name, *declared, *ports, *results):
        if not NAME.fullmatch(name) or name in RESERVED:
            raise VerifyError(f"{name!r} is no name", where=program.name)
    for graph in program.graphs:
        _unique(f"port of {graph.name}", (port.name for port in (*graph.inputs, *graph.outputs)))


def _declared(program: Program) -> dict[str, Type]:
    _unique("graph", (graph.name for graph in program.graphs))
    _unique("value", [*(item.name for item in program.inputs), *(table.name for table in program.tables)])
    for graph in program.graphs:
        if graph.name in BUILTINS:
            raise VerifyError(f"a graph takes the name of the built-in {graph.name}", where=program.name)
        for port in (*graph.inputs, *graph.outputs):
            _tensor(port.name, port.type, f"graph {graph.name}")
    for table in program.tables:
        _tensor(table.name, table.type, f"table {table.name}")
    for item in program.inputs:
        if item.type.dtype not in ("text", "scalar", "float32"):
            raise VerifyError(f"input {item.name} is neither text, scalar, picture nor tensor", where=program.name)
        if item.is_picture and (item.type.dtype, len(item.type.shape)) != ("float32", 4):
            raise VerifyError(f"input {item.name} is no picture", where=program.name)
        if item.default is not None and not math.isfinite(item.default):
            raise VerifyError(f"input {item.name} has the default {item.default}", where=program.name)
    return {item.name: item.type for item in program.inputs} | {table.name: table.type for table in program.tables}


def _unique(what: str, names: Iterable[str]) -> None:
    seen = set[str]()
    for name in names:
        if name in seen:
            raise VerifyError(f"{what} {name} is declared twice")
        seen.add(name)


def _tensor(name: str, type_: Type | None, where: str) -> None:
    if type_ is None or type_.dtype not in DTYPES:
        raise VerifyError(f"{name} has no tensor type", where=where)


def _reads_are_defined(op: Op, types: dict[str, Type]) -> None:
    for name in op.reads():
        if name not in types:
            raise VerifyError(f"{name} is read before it is defined", where=print_op(op))


def _results_are_new(op: Op, types: dict[str, Type]) -> None:
    for value in op.results:
        if value.name in types:
            raise VerifyError(f"{value.name} is defined twice", where=print_op(op))
        _tensor(value.name, value.type, print_op(op))


def _coefficients(op: Op, types: dict[str, Type]) -> None:
    if op.coefficients and op.operator not in ("linear", "step"):
        raise VerifyError(f"{op.operator} takes no coefficients", where=print_op(op))
    for coefficient in op.coefficients:
        for names, factor in coefficient.terms:
            if not math.isfinite(factor):
                raise VerifyError(f"a coefficient is {factor}", where=print_op(op))
            if any(types[name].dtype != "scalar" for name in names):
                raise VerifyError("a coefficient is made of something other than scalars", where=print_op(op))


def _call(op: Op, graph: Graph, types: dict[str, Type]) -> None:
    given = dict(op.attrs)
    ports = {port.name: port.type for port in graph.inputs}
    if op.args or given.keys() != ports.keys() or len(given) < len(op.attrs):
        raise VerifyError(f"{graph.name} takes {', '.join(ports) or 'nothing'}", where=print_op(op))
    for name, literal in given.items():
        if isinstance(literal, Ref) and types[literal.name] != ports[name]:
            raise VerifyError(
                f"{literal.name} does not have the type of {graph.name}'s port {name}", where=print_op(op)
            )
        if literal is None or isinstance(literal, str):
            raise VerifyError(f"{graph.name}'s port {name} is given no tensor", where=print_op(op))
    if [value.type for value in op.results] != [port.type for port in graph.outputs]:
        raise VerifyError(f"the results are not of the types that {graph.name} returns", where=print_op(op))


def _builtin(op: Op, types: dict[str, Type]) -> None:
    rule = {
        "tokenize": _tokenize,
        "noise": _noise,
        "linear": _linear,
        "split": _split,
        "concat": _concat,
        "step": _step,
    }[op.operator]
    operands = [_operand(literal, op, types) for literal in op.args]
    problem = rule(op, operands)
    if problem:
        raise VerifyError(f"{op.operator} {problem}", where=print_op(op))


def _operand(literal: Literal, op: Op, types: dict[str, Type]) -> Type:
    if not isinstance(literal, Ref):
        raise VerifyError(f"{op.operator} takes values only", where=print_op(op))
    return types[literal.name]


def _tokenize(op: Op, operands: list[Type]) -> str:
    if [operand.dtype for operand in operands] != ["text"]:
        return "takes one text"
    if not isinstance(op.attr("tokenizer"), str) or not isinstance(op.attr("pad"), int):
        return "needs a tokenizer and its padding"
    length = op.attr("length")
    shape = (*operands[0].shape, length if isinstance(length, int) else 0)
    if len(op.results) not in (1, 2) or any(value.type != Type("int64", shape) for value in op.results):
        return "gives int64 ids, and a mask if asked, for each text and position"
    return ""


def _noise(op: Op, operands: list[Type]) -> str:
    if operands or len(op.results) != 1 or op.results[0].type is None or op.results[0].type.dtype != "float32":
        return "takes nothing and gives one float32 tensor"
    return ""


def _linear(op: Op, operands: list[Type]) -> str:
    if len(op.coefficients) - len(operands) not in (0, 1) or not op.coefficients:
        return "needs one coefficient for each operand, and one more for a constant term"
    if len(op.results) != 1 or op.results[0].type is None or not op.results[0].type.is_float:
        return "gives one tensor of floating-point numbers"
    if any(not _broadcasts(operand.shape, op.results[0].type.shape) for operand in operands):
        return "cannot broadcast its operands to its result"
    return ""


def _step(op: Op, operands: list[Type]) -> str:
    if len(op.coefficients) - len(operands) not in (0, 1) or not operands or op.results:
        return "marks the latents: one coefficient for each operand, no results"
    return ""


def _axis(op: Op, rank: int) -> int | None:
    axis = op.attr("axis")
    return axis if isinstance(axis, int) and 0 <= axis < rank else None


def _split(op: Op, operands: list[Type]) -> str:
    if len(operands) != 1 or (axis := _axis(op, len(operands[0].shape))) is None:
        return "needs one operand and an axis of it"
    whole, parts = operands[0], len(op.results)
    if not parts or whole.shape[axis] % parts:
        return "needs equal parts"
    part = Type(whole.dtype, (*whole.shape[:axis], whole.shape[axis] // parts, *whole.shape[axis + 1 :]))
    return "" if all(value.type == part for value in op.results) else "does not give those parts"


def _concat(op: Op, operands: list[Type]) -> str:
    if not operands or (axis := _axis(op, len(operands[0].shape))) is None:
        return "needs operands and an axis of them"
    first = operands[0]
    around = {(o.dtype, o.shape[:axis], o.shape[axis + 1 :]) for o in operands}
    if len(around) != 1:
        return "needs operands that agree but on the axis"
    shape = (*first.shape[:axis], sum(o.shape[axis] for o in operands), *first.shape[axis + 1 :])
    if [value.type for value in op.results] != [Type(first.dtype, shape)]:
        return "does not give the operands' concatenation"
    return ""


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    padded = (1,) * (len(to) - len(shape)) + shape
    return len(padded) == len(to) and all(a in (1, b) for a, b in zip(padded, to, strict=True))
