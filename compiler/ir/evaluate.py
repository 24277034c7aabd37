"""Run a program eagerly in PyTorch: the meaning of every operator, and the reference for every pass and back end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffc.compiler.errors import VerifyError
from diffc.compiler.ir.program import Graph, Literal, Op, Program, Ref, Type

Values = Mapping[str, torch.Tensor]


def evaluate(
    program: Program,
    *,
    tokens: Mapping[str, Sequence[torch.Tensor]],
    noises: Sequence[torch.Tensor],
    scalars: Mapping[str, float] | None = None,
) -> list[torch.Tensor]:
    """Give the outputs of a program whose graphs have bodies and whose tables have data.

    ``tokens`` maps each text input to its ids (and mask), ``noises`` are the draws in order, ``scalars`` replace
    defaults.
    """
    numbers = {i.name: i.default for i in program.inputs if i.default is not None} | dict(scalars or {})
    values: dict[str, torch.Tensor] = {t.name: torch.as_tensor(t.data) for t in program.tables}
    graphs, draws = {graph.name: graph for graph in program.graphs}, iter(noises)
    for op in program.ops:
        match op.operator:
            case "tokenize":
                (text,) = op.reads()
                made: Sequence[torch.Tensor] = tokens[text]
            case "noise":
                made = [next(draws)]
            case "step":
                made = []
            case _:
                made = apply(op, values, numbers, graphs.get(op.operator))
        values |= {value.name: tensor for value, tensor in zip(op.results, made, strict=False)}
    return [values[name] for name in program.outputs]


def apply(op: Op, values: Values, scalars: Mapping[str, float], graph: Graph | None = None) -> Sequence[torch.Tensor]:
    """Apply one operation to the values that it reads."""
    if graph is not None:
        ports = {port.name: port.type for port in graph.inputs}
        given = {name: _tensor(literal, values, ports[name]) for name, literal in op.attrs}
        return list(graph.body.module()(*(given[port.name] for port in graph.inputs)))
    operands = [values[literal.name] for literal in op.args if isinstance(literal, Ref)]
    match op.operator:
        case "linear":
            return [_linear(op, operands, scalars)]
        case "split":
            axis = int(str(op.attr("axis")))
            return list(operands[0].chunk(len(op.results), axis))
        case "concat":
            return [torch.cat(operands, int(str(op.attr("axis"))))]
        case name if name.startswith("aten."):
            return _aten(op, values)
    raise VerifyError(f"{op.operator} has no meaning outside a program")


def _linear(op: Op, operands: Sequence[torch.Tensor], scalars: Mapping[str, float]) -> torch.Tensor:
    type_ = op.results[0].type
    factors = [coefficient(scalars) for coefficient in op.coefficients]
    constant = factors[len(operands)] if len(factors) > len(operands) else 0.0
    terms = [factor * operand for factor, operand in zip(factors, operands, strict=False)]
    total = sum(terms[1:], terms[0]) if terms else torch.zeros(())
    total = total + constant if constant else total
    return total.expand(type_.shape).to(getattr(torch, type_.dtype)) if type_ else total


def _tensor(literal: Literal, values: Values, type_: Type | None) -> torch.Tensor:
    if isinstance(literal, Ref):
        return values[literal.name]
    return torch.tensor(literal, dtype=getattr(torch, type_.dtype) if type_ else None)


def _aten(op: Op, values: Values) -> Sequence[torch.Tensor]:
    _, packet, overload = op.operator.split(".")
    function = getattr(getattr(torch.ops.aten, packet), overload)
    expected = [str(argument.type) for argument in function._schema.arguments]

    def given(literal: Literal, type_: str = "") -> Any:
        if isinstance(literal, tuple):
            return [given(item, type_.removeprefix("List[").removesuffix("]")) for item in literal]
        if isinstance(literal, str) and isinstance(getattr(torch, literal, None), torch.dtype):
            return getattr(torch, literal)
        if isinstance(literal, Ref):
            return values[literal.name].item() if type_ == "number" else values[literal.name]
        return torch.tensor(literal) if type_ == "Tensor" and literal is not None else literal

    args = [given(literal, type_) for literal, type_ in zip(op.args, expected, strict=False)]
    result = function(*args, **{key: given(value) for key, value in op.attrs})
    return list(result) if isinstance(result, list | tuple) else [result]
