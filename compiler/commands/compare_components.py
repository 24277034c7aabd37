"""Compare each graph of a bundle with the component that it was captured from, on equal inputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffc.compiler.ir.program import ARITHMETIC
from diffc.compiler.metrics import sqnr
from diffc.compiler.tracing.component_calls import bind, tensor_ports
from diffc.compiler.tracing.component_state import ENTRY_POINTS
from diffc.compiler.tracing.returned_values import returned_tensors
from diffc.runtime.bundle.open import Bundle, open_bundle
from diffc.runtime.interpreter import Interpreter
from diffc.runtime.program.program import Op, Program, Ref, Type


@dataclass(frozen=True)
class ComponentCall:
    """Hold the inputs of one call of a pipeline's component, by the names of its ports, and its outputs."""

    component: str
    feeds: Mapping[str, NDArray[Any]]
    outputs: Sequence[NDArray[Any]]

    @property
    def types(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Map each port to its element type and shape."""
        return {port: (str(array.dtype), array.shape) for port, array in self.feeds.items()}

    def has(self, ports: Mapping[str, Type]) -> bool:
        """Return whether there is an input of the right type for each port."""
        return all(self.types.get(port) == (type_.dtype, type_.shape) for port, type_ in ports.items())


@contextlib.contextmanager
def recorded(pipeline: Any, calls: list[ComponentCall]) -> Iterator[None]:
    """Append calls of the pipeline's components to ``calls``: of each component one per set of input types."""
    with contextlib.ExitStack() as stack:
        for name, module in pipeline.components.items():
            if isinstance(module, torch.nn.Module):
                for method in ENTRY_POINTS:
                    if callable(getattr(type(module), method, None)):
                        module.__dict__[method] = _recording(name, module, method, calls)
                        stack.callback(module.__dict__.pop, method)
        yield


def _recording(name: str, module: torch.nn.Module, method: str, calls: list[ComponentCall]) -> Callable[..., Any]:
    original = getattr(type(module), method).__get__(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        returned = original(*args, **kwargs)
        ports, tensors = tensor_ports(bind(original, args, kwargs))
        outputs = returned_tensors(returned)
        feeds = {port.name: tensor.numpy(force=True) for port, tensor in zip(ports, tensors, strict=True)}
        recorded_call = ComponentCall(name, feeds, [output.numpy(force=True) for output in outputs])
        if recorded_call.types not in [call.types for call in calls if call.component == name]:
            calls.append(recorded_call)
        return returned

    return call


def compare_components(path: Path, name: str, calls: Sequence[ComponentCall]) -> dict[str, dict[str, Any]]:
    """Run the first call of each graph on the inputs of its component's call, and compare the outputs.

    Returns ``component``, ``sqnr`` and ``max_abs`` of the worst output by graph. Where a component has several graphs,
    those with outputs of the component are run, after all graphs that they depend on.
    """
    bundle = open_bundle(path)
    interpreter, program, comparisons = Interpreter(bundle), bundle.programs[name], {}
    hidden = _between_graphs(program, bundle)
    for graph in program.graphs:
        ops = _with_prelude(program, next(op for op in program.ops if op.operator == graph.name), bundle)
        names = [value.name for value in ops[-1].results if value.name not in hidden]
        call = None if bundle.manifest.stage(graph.name) else _first(calls, program, ops, bundle)
        if call is None or not names:
            continue
        results = {value.name for op in ops for value in op.results}
        inputs = {ref.name: call.feeds[port] for op in ops for port, ref in _refs(op) if ref.name not in results}
        errors = []
        for result in interpreter.run(program, inputs, {}, ops=ops, outputs=names).values():
            alike = [output for output in call.outputs if output.shape == result.shape]
            ratios = [(sqnr(result, output), float(np.abs(result - output).max())) for output in alike]
            errors.append(max(ratios, default=(0.0, math.inf)))
        ratio, difference = min(errors)
        comparisons[graph.name] = {"component": call.component, "sqnr": ratio, "max_abs": difference}
    return comparisons


def not_compared(
    components: Iterable[str],
    comparisons: Mapping[str, Mapping[str, Any]],
    calls: Sequence[ComponentCall],
    source: Collection[str],
) -> dict[str, str]:
    """Map each component of a bundle that no comparison is of to the reason; ``source`` are those of the pipeline."""
    compared = {comparison["component"] for comparison in comparisons.values()}
    called = {call.component for call in calls}
    reasons = dict[str, str]()
    for name in sorted({*components} - {*compared, ARITHMETIC, ""}):
        is_called = "the source calls it with inputs of other types or shapes" if name in called else None
        reasons[name] = is_called or ("the source does not call it" if name in source else "the source has none")
    return reasons


def _with_prelude(program: Program, op: Op, bundle: Bundle) -> list[Op]:
    """List a call after the operations of its component that it depends on: splits of tables, calls of other graphs."""
    producers = {value.name: producer for producer in program.ops for value in producer.results}
    tables, prelude = {table.name for table in program.tables}, dict[Op, None]()

    def add(op: Op) -> None:
        for producer in (producers[ref.name] for _, ref in _refs(op) if ref.name in producers):
            operand = next(producer.reads(), "") if producer.operator == "split" else ""
            source = producers.get(operand, producer)
            if _component(source, bundle) == _component(op, bundle):
                add(source)
            if operand in tables or _component(source, bundle) == _component(op, bundle):
                prelude.update(dict.fromkeys((source, producer)))

    add(op)
    return [*prelude, op]


def _component(op: Op, bundle: Bundle) -> str | None:
    entry = bundle.manifest.raw["graphs"].get(op.operator)
    return None if entry is None else str(entry["component"])


def _between_graphs(program: Program, bundle: Bundle) -> set[str]:
    """List the values that one graph of a component computes for another graph of it."""
    producers = {value.name: producer for producer in program.ops for value in producer.results}
    reads = [(op, ref.name) for op in program.ops for _, ref in _refs(op) if ref.name in producers]
    return {
        name
        for op, name in reads
        if op.operator != producers[name].operator
        and _component(op, bundle)
        and _component(op, bundle) == _component(producers[name], bundle)
    }


def _refs(op: Op) -> list[tuple[str, Ref]]:
    return [(port, literal) for port, literal in op.attrs if isinstance(literal, Ref)]


def _first(calls: Sequence[ComponentCall], program: Program, ops: Sequence[Op], bundle: Bundle) -> ComponentCall | None:
    """Find the first call of the component that has the inputs of ``ops``."""
    component = _component(ops[-1], bundle)
    results = {value.name for op in ops for value in op.results}
    ports = {port: program.types()[ref.name] for op in ops for port, ref in _refs(op) if ref.name not in results}
    return next((call for call in calls if call.component == component and call.has(ports)), None)
