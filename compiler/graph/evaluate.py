"""Run a program eagerly in PyTorch: the meaning of every operation, and the reference for every pass and back end.

Tests, calibration and the searches among feature caches all run programs here. The values that a program does not
compute are passed by name: inputs, tokens and noise, and any other known value. An operation whose results are all
known is not run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from torch import fx

from diffc.compiler.errors import BuildError, VerifyError
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.lazy_weights import bytes_to_materialize, materialized
from diffc.compiler.graph.open_sizes import evaluated
from diffc.compiler.ir.program import UNTYPED, Graph, Literal, Op, Program, Ref, Size, Type
from diffc.runtime.memory import free_memory
from diffc.runtime.program.texts import TEXT_OPERATORS

Tensors = Sequence[torch.Tensor]
Values = Mapping[str, torch.Tensor]

Call = Callable[[int, tuple[torch.Tensor, ...]], Tensors]
"""Computes the outputs of a graph from the number of its calls so far and its inputs, in the order of its ports."""

Observe = Callable[[Op, Tensors, Tensors], None]
"""Receives each call of a graph with its inputs and outputs, and each ``step`` with the latents as its only output."""


def evaluate(program: Program, values: Values, scalars: Mapping[str, float] = MappingProxyType({})) -> Tensors:
    """Compute the outputs of a program from the values that it does not compute itself."""
    with Executor(program, scalars) as executor:
        outputs = executor.run(values)
        return [outputs[name] for name in program.outputs]


class Executor:
    """Run a program, or some of its operations, any number of times within one ``with`` block.

    The weights of a graph are read into memory at its first call, and released when the block ends. ``scalars`` replace
    the defaults of the program's inputs.
    """

    def __init__(self, program: Program, scalars: Mapping[str, float] = MappingProxyType({})) -> None:
        self.program = program
        self.graphs = {graph.name: graph for graph in program.graphs}
        self.scalars = {i.name: i.default for i in program.inputs if i.default is not None} | dict(scalars)
        self._tables = {table.name: torch.as_tensor(table.data) for table in program.tables}
        self._bodies = dict[str, fx.GraphModule]()
        self._in_memory = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bodies.clear()
        self._in_memory.close()

    def run(
        self,
        values: Values,
        *,
        ops: Sequence[Op] | None = None,
        outputs: Sequence[str] | None = None,
        replace: Mapping[str, Call] = MappingProxyType({}),
        observe: Observe = lambda *_: None,
    ) -> dict[str, torch.Tensor]:
        """Run ``ops``, by default all of the program, and return ``outputs``, by default those of the program.

        ``values`` holds by name the values that the operations read and none computes, such as the tokens of texts,
        whose operations are not run; the tables are known.
        ``replace`` computes the outputs of some graphs in another manner. A value is freed after its last use.

        Raises `BuildError` where the weights of a graph do not fit into memory.
        """
        outputs = self.program.outputs if outputs is None else outputs
        values = self._tables | dict(values)
        ops = self.program.ops if ops is None else ops
        ops = [op for op in ops if op.operator not in TEXT_OPERATORS]
        ops = [op for op in ops if not op.results or any(result.name not in values for result in op.results)]
        keep = {*outputs, *(length.name for length in self.program.lengths)}
        calls, last_uses = Counter[str](), _last_uses(ops, keep=keep)
        with torch.no_grad():
            for op, unused in zip(ops, last_uses, strict=True):
                graph = self.graphs.get(op.operator)
                operands = () if graph is None else operands_of(op, graph, values)
                if graph is None:
                    results = apply(op, values, self.scalars)
                elif graph.name in replace:
                    results = replace[graph.name](calls[graph.name], operands)
                else:
                    results = list(self._body(graph)(*operands))
                if graph is not None or op.operator == "step":
                    observe(op, operands, results)
                calls[op.operator] += 1
                values |= {value.name: tensor for value, tensor in zip(op.results, results, strict=False)}
                for name in unused:
                    values.pop(name, None)
        return {name: values[name] for name in outputs}

    def _body(self, graph: Graph) -> fx.GraphModule:
        if graph.name not in self._bodies:
            body = body_of(graph)
            _check_memory(graph, bytes_to_materialize(body))
            self._in_memory.enter_context(materialized(body))
            self._bodies[graph.name] = body
        return self._bodies[graph.name]


def needed_for(ops: Sequence[Op], outputs: Collection[str], known: Collection[str]) -> list[Op]:
    """List the operations that ``outputs`` depend on, down to the values in ``known``."""
    needed, operations = set(outputs), list[Op]()
    for op in reversed(ops):
        names = {value.name for value in op.results}
        if names & needed and not names <= set(known):
            operations.append(op)
            needed.update(op.reads())
    return operations[::-1]


def apply(op: Op, values: Values, scalars: Mapping[str, float]) -> Tensors:
    """Apply one operation that is no call of a graph to the values that it reads; a ``step`` yields its latents."""
    operands = [values[literal.name] for literal in op.args if isinstance(literal, Ref)]
    match op.operator:
        case "linear" | "step":
            return [_linear(op, values, scalars)]
        case "split":
            axis = int(str(op.attr("axis")))
            return list(operands[0].chunk(len(op.results), axis))
        case "concat":
            return [torch.cat(operands, int(str(op.attr("axis"))))]
        case name if name.startswith("aten."):
            return _aten(op, values)
        case "noise" | "tokenize":
            raise VerifyError(f"{op.operator} has no values to run with: they come with the request")
    raise VerifyError(f"{op.operator} has no meaning outside a program")


def operands_of(op: Op, graph: Graph, values: Values) -> tuple[torch.Tensor, ...]:
    """Return the inputs of a call of a graph, in the order of the graph's ports."""
    attrs = dict(op.attrs)
    return tuple(_tensor(attrs[port.name], values, port.type) for port in graph.inputs)


def _check_memory(graph: Graph, needed: int) -> None:
    free = free_memory()
    if free is not None and free < needed:
        what = f"running {graph.name} needs {needed / 1e9:.1f} GB of memory, and there are {free / 1e9:.1f} GB"
        fix = "end other programs, add swap, or take a target that is not calibrated, such as ort-bf16"
        raise BuildError(what, where=f"component {graph.component}", fix=fix)


def _last_uses(ops: Sequence[Op], keep: Collection[str]) -> list[list[str]]:
    """List, for each operation, the values that nothing after it reads."""
    seen, unused = set(keep), list[list[str]]()
    for op in reversed(ops):
        names = {*op.reads(), *(value.name for value in op.results)}
        unused.append(sorted(names - seen))
        seen |= names
    return unused[::-1]


def _linear(op: Op, values: Values, scalars: Mapping[str, float]) -> torch.Tensor:
    operands = [values[name] for name in op.operands()]
    type_ = op.results[0].type if op.results else UNTYPED
    factors = [coefficient(scalars) for coefficient in op.coefficients]
    constant = factors[len(operands)] if len(factors) > len(operands) else 0.0
    terms = [factor * operand for factor, operand in zip(factors, operands, strict=False)]
    total = sum(terms[1:], terms[0]) if terms else torch.zeros(())
    total = total + constant if constant else total
    if type_ == UNTYPED:
        return total
    return total.expand([evaluated(size, values) for size in type_.shape]).to(getattr(torch, type_.dtype))


def _tensor(literal: Literal, values: Values, type_: Type) -> torch.Tensor:
    if isinstance(literal, Ref):
        return values[literal.name]
    return torch.tensor(literal, dtype=getattr(torch, type_.dtype))


def _aten(op: Op, values: Values) -> Tensors:
    _, packet, overload = op.operator.split(".")
    function = getattr(getattr(torch.ops.aten, packet), overload)
    expected = [str(argument.type) for argument in function._schema.arguments]

    def argument(literal: Literal, type_: str = "") -> Any:
        if isinstance(literal, tuple):
            return [argument(item, type_.removeprefix("List[").removesuffix("]")) for item in literal]
        if isinstance(literal, Size):
            return evaluated(literal, values)
        if isinstance(literal, str) and isinstance(getattr(torch, literal, None), torch.dtype):
            return getattr(torch, literal)
        if isinstance(literal, Ref):
            return values[literal.name].item() if type_ == "number" else values[literal.name]
        return torch.tensor(literal) if type_ == "Tensor" and literal is not None else literal

    args = [argument(literal, type_) for literal, type_ in zip(op.args, expected, strict=False)]
    result = function(*args, **{key: argument(literal) for key, literal in op.attrs})
    return list(result) if isinstance(result, list | tuple) else [result]
