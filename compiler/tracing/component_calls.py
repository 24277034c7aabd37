"""Record the opaque calls of a trace, and capture each distinct signature once as a graph."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils import _pytree as pytree

from diffc.compiler.errors import CaptureError, first_line
from diffc.compiler.graph.body import example_inputs
from diffc.compiler.graph.export import export, layers_of, type_of
from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.graph.open_sizes import dynamic_sizes, evaluated, lengths_of, markers, sizes_stay_open
from diffc.compiler.ir.program import BUILTINS, Graph, Length, Program, Type, Value
from diffc.compiler.tracing import tiles
from diffc.compiler.tracing.component_run import ComponentRuns, Computation, run_component
from diffc.compiler.tracing.component_state import ComponentState, is_described
from diffc.compiler.tracing.open_signatures import OpenCall, Span
from diffc.compiler.tracing.pipeline_errors import PipelineRefusal
from diffc.compiler.tracing.returned_values import returned_tensors, tensors_of
from diffc.compiler.tracing.state_containers import Place, value_at

Key = tuple[str, str, str, tuple[Any, ...], tuple[Type | str, ...]]
"""A component, its method, the structure of its arguments, its state, and for each the tensor's type or its text."""


@dataclass
class Signature:
    """Hold one signature of a component: its state, method, ports, static arguments and outputs.

    ``returned`` has what the method returns, and the values that it stores in ``places``, as fake tensors. Sizes among
    the ports, and integers among the static arguments, may be functions of ``lengths``. In each of the ``states`` the
    ``computation`` is the same.
    """

    name: str
    key: Key
    component: str
    module: nn.Module
    state: ComponentState
    method: Callable[..., Any]
    structure: pytree.TreeSpec
    leaves: Sequence[Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    returned: tuple[Any, list[Any]]
    places: tuple[Place, ...]
    computation: Computation
    layouts: tuple[tuple[int, tuple[int, ...]], ...]
    states: list[ComponentState] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    lengths: Mapping[str, Span] = field(default_factory=dict)

    def computes_alike(self, base: Signature) -> bool:
        """Return whether the call computes in the state of another call of its method what it does in its own."""
        same = any(one.key == two.key for one in self.states for two in base.states)
        return same or self.computation_in(base) == self.computation

    def computation_in(self, base: Signature) -> Computation:
        """Return what the call computes in the state of another call of its method, of tensors of the same layout."""
        with FAKES:
            ports = zip(example_inputs(self.inputs), self.layouts, strict=True)
            values = [torch.empty_strided(port.shape, strides, dtype=port.dtype) for port, (_, strides) in ports]
        tensors = iter([values[first] for first, _ in self.layouts])
        leaves = [next(tensors) if isinstance(leaf, _Port) else leaf for leaf in self.leaves]
        with base.state.restored():
            return run_component(base.method, pytree.tree_unflatten(leaves, self.structure), base.state).computation


class ComponentCalls:
    """Collect the calls of one or several traces, then export a graph for each distinct signature.

    Programs that are traced with one `ComponentCalls` share graphs. Outputs that no program reads are not computed.
    Traces of one pipeline whose graphs are not needed may share the ``runs`` of its components.
    """

    def __init__(self, runs: ComponentRuns | None = None) -> None:
        self.fake_mode, self.runs = FAKES, runs or ComponentRuns()
        self.signatures: dict[Key, Signature] = {}
        self._computations: dict[tuple[Any, ...], Signature] = {}

    def branch(self) -> ComponentCalls:
        """Return calls that begin with these signatures, for traces whose own are not needed later."""
        branch = ComponentCalls(self.runs)
        branch.signatures, branch._computations = dict(self.signatures), dict(self._computations)
        return branch

    def call(
        self, component: str, module: nn.Module, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Signature, list[torch.Tensor], tuple[Place, ...]]:
        """Find the signature of a call; return its tensors in port order, and the places where it stores results.

        The method runs on fake tensors where a call is new, or changes the state of the component.
        """
        original = getattr(module, method)
        arguments = bind(original, args, kwargs)
        leaves, structure = pytree.tree_flatten(arguments)
        ports, tensors = tensor_ports(arguments)
        static = tuple(type_of(leaf) if isinstance(leaf, torch.Tensor) else _text(leaf) for leaf in leaves)
        objects = [leaf for leaf in leaves if not isinstance(leaf, torch.Tensor) and is_described(leaf)]
        state = self.runs.state(module, *objects)
        key = (component, method, str(structure), (*state.key, *_settings()), static)
        run = self.runs.find(key)
        if run is not None and key in self.signatures:
            return self.signatures[key], tensors, ()
        if run is None:
            try:
                with _misfit(component):
                    arguments = pytree.tree_unflatten(map(self._fake, leaves), structure)
                    run = self.runs.run(key, original, arguments, state)
            except CaptureError as error:
                if isinstance(error.__cause__, NotImplementedError) and tiles.turn_on(component, module):
                    return self.call(component, module, method, args, kwargs)
                raise
        computation = (component, method, str(structure), static, run.computation)
        if computation not in self._computations:
            returned = (run.returned, [value_at(place) for place in run.stored])
            self._computations[computation] = Signature(
                self._graph_name(component, method),
                key,
                component,
                module,
                run.state,
                original,
                structure,
                [_PORT if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves],
                ports,
                _output_ports(returned, {port.name for port in ports}),
                returned,
                run.stored,
                run.computation,
                run.layouts,
            )
        self.signatures[key] = self._computations[computation]
        self.signatures[key].states.append(state)
        return self.signatures[key], tensors, run.stored

    def _fake(self, leaf: Any) -> Any:
        return self.fake_mode.from_tensor(leaf) if type(leaf) is torch.Tensor else getattr(leaf, "fake", leaf)

    def signature(self, name: str) -> Signature | None:
        """Return the signature of this name; None where the name is an operator's."""
        return next((signature for signature in self.signatures.values() if signature.name == name), None)

    def opened(self, signature: Signature, call: OpenCall) -> str:
        """Replace a signature, of the sizes that a trace assumed, by one of open sizes; return its name."""
        sizes: tuple[Type | str, ...] = (*(port.type for port in call.inputs), *map(repr, call.leaves))
        key = (*signature.key[:-1], sizes)
        self.signatures = {at: item for at, item in self.signatures.items() if item is not signature}
        self._computations = {at: item for at, item in self._computations.items() if item is not signature}
        if key not in self.signatures:
            name = self._graph_name(signature.component, signature.key[1])
            self.signatures[key] = replace(signature, name=name, key=key, **vars(call.renamed(f"{name}_")))
        same = self.signatures[key]
        spans = zip(same.lengths.items(), call.lengths.values(), strict=True)
        same.lengths = {name: span.joined(one) for (name, span), one in spans}
        return same.name

    def _graph_name(self, component: str, method: str) -> str:
        name = component if method == "forward" else f"{component}_{method}"
        name = f"{name}_graph" if name in BUILTINS else name
        taken = {signature.name for signature in self.signatures.values()}
        return next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)

    def graphs(self, programs: Iterable[Program]) -> tuple[Program, ...]:
        """Export every signature that the programs call, with the outputs that they read; return them with graphs."""
        programs = tuple(program.live() for program in programs)
        by_name = {signature.name: signature for signature in self.signatures.values()}
        for program in programs:
            read = {name for op in program.ops for name in op.reads()} | set(program.outputs)
            for op in program.ops:
                if op.operator in by_name:
                    by_name[op.operator].used |= {i for i, value in enumerate(op.results) if value.name in read}
        graphs = {name: _export(signature) for name, signature in by_name.items() if signature.used}
        return tuple(_with_graphs(program, graphs, by_name) for program in programs)

    def parts(self) -> dict[str, str]:
        """Pair each signature with the one that differs from it only by a part of the batch, by their names."""
        return {
            batch.name: part.name
            for theirs, batch in self.signatures.items()
            for mine, part in self.signatures.items()
            if batch.used == part.used and mine[:-1] == theirs[:-1] and _is_part(mine[-1], theirs[-1])
        }


def _is_part(part: tuple[Type | str, ...], batch: tuple[Type | str, ...]) -> bool:
    """Return whether arguments are the same but for tensors, whose batches are all the same part of the others."""
    changed = [(a, b) for a, b in zip(part, batch, strict=True) if a != b]
    ratios = {_ratio(a, b) for a, b in changed}
    return len(ratios) == 1 and None not in ratios


def _ratio(part: Type | str, batch: Type | str) -> int | None:
    if isinstance(part, str) or isinstance(batch, str) or not part.shape or part.dtype != batch.dtype:
        return None
    rows, rows_of_part = batch.shape[0], part.shape[0]
    if batch.shape[1:] != part.shape[1:] or not isinstance(rows, int) or not isinstance(rows_of_part, int):
        return None
    ratio, rest = divmod(rows, rows_of_part)
    return ratio if ratio > 1 and not rest else None


def bind(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Name the arguments of a call as the method's signature does."""
    bound = inspect.signature(method).bind(*args, **kwargs)
    return {**bound.arguments.pop("kwargs", {}), **bound.arguments}


def tensor_ports(arguments: dict[str, Any]) -> tuple[tuple[Value, ...], list[torch.Tensor]]:
    """List the tensors among named arguments, and a port for each, named by the way to it."""
    paths, _ = pytree.tree_flatten_with_path(arguments)
    pairs = [(Value(_port_name(path), type_of(leaf)), leaf) for path, leaf in paths if isinstance(leaf, torch.Tensor)]
    return tuple(port for port, _ in pairs), [leaf for _, leaf in pairs]


class _Port:
    """Stand for a tensor among the leaves of a call's arguments."""


_PORT = _Port()


def _port_name(path: pytree.KeyPath) -> str:
    parts = [re.sub(r"\W", "", str(getattr(key, "key", getattr(key, "idx", key)))) for key in path]
    return "_".join(parts)


def _output_ports(returned: tuple[Any, list[Any]], inputs: set[str]) -> tuple[Value, ...]:
    """List the outputs, named by the ways to them; stored values follow those that are returned."""
    result, stored = returned
    ports = _named(dict(result) if isinstance(result, dict) else result, "out", inputs)
    return (*ports, *_named(stored, "stored", inputs))


def _named(structure: Any, prefix: str, inputs: set[str]) -> list[Value]:
    paths, _ = pytree.tree_flatten_with_path(structure)
    ports = []
    for path, leaf in paths:
        for key, tensor in tensors_of(leaf):
            name = "_".join(part for part in (_port_name(path), key) if part)
            name = f"{prefix}_{name}" if not name or name[0].isdigit() else name
            name = "out" if name == "out_0" else name
            ports.append(Value(f"{name}_out" if name in inputs else name, type_of(tensor)))
    return ports


class _Call(nn.Module):
    """Take the tensors of a call in port order and return the outputs that are used."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.module = signature.module
        self.signature = signature

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ports = iter(tensors)
        lengths = lengths_of(self.signature.inputs, tensors)
        leaves = [
            next(ports) if isinstance(leaf, _Port) else evaluated(leaf, lengths) for leaf in self.signature.leaves
        ]
        returned = self.signature.method(**pytree.tree_unflatten(leaves, self.signature.structure))
        outputs = returned_tensors((returned, [value_at(place) for place in self.signature.places]))
        self.signature.state.undo()
        return tuple(outputs[i] for i in sorted(self.signature.used))


def _export(signature: Signature) -> Graph:
    lengths = [Length(length, span.least, span.most) for length, span in signature.lengths.items()]
    example = example_inputs(signature.inputs, markers(lengths))
    sizes = dynamic_sizes([port.type for port in signature.inputs], lengths)
    with signature.state.restored():
        _check_repeats(signature)
        call = _Call(signature).eval()
        layers = {f"module.{path}": layer for path, layer in layers_of(call.module).items()}
        with sizes_stay_open(signature.module):
            body = export(signature.name, call, example, layers=layers, sizes=sizes)
    outputs = tuple(signature.outputs[i] for i in sorted(signature.used))
    return Graph(signature.name, signature.inputs, outputs, body, signature.component)


def _settings() -> tuple[Any, ...]:
    """Return the settings of PyTorch on which calls depend."""
    return torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


def _check_repeats(signature: Signature) -> None:
    """Refuse a call that computes something else when it is repeated; its state is restored as far as it can be."""
    if not signature.state.is_equal_now():
        what = f"the weights of {signature.component}, or what its methods read, changed after its call"
        raise CaptureError(what, fix="leave them as they are, or exchange modules instead of writing into weights")
    if not signature.lengths and signature.computation_in(signature) != signature.computation:
        what = f"{signature.component} computes something else when it is called again in the same state"
        raise CaptureError(what, fix="keep what its methods read in attributes: no clock, random numbers or cache")


def _text(leaf: Any) -> str:
    """Return the text of an argument that is no tensor; what belongs to the state has its contents there."""
    return type(leaf).__name__ if is_described(leaf) else repr(leaf)


@contextmanager
def _misfit(component: str) -> Iterator[None]:
    """Name the component that refuses its arguments; torch's own report of it is for its developers."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException):
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise PipelineRefusal(
            f"{component} does not fit its arguments in the pipeline: {first_line(error)}",
            fix="check that the configurations of the checkpoint's components belong together",
        ) from error
    finally:
        log.disabled = before


def _with_graphs(program: Program, graphs: dict[str, Graph], signatures: dict[str, Signature]) -> Program:
    ops = tuple(
        replace(op, results=tuple(op.results[i] for i in sorted(signatures[op.operator].used)))
        if op.operator in signatures
        else op
        for op in program.ops
    )
    called = dict.fromkeys(op.operator for op in ops if op.operator in graphs)
    spans = {length: span for name in called for length, span in signatures[name].lengths.items()}
    lengths = tuple(Length(length, span.least, span.most) for length, span in spans.items())
    return replace(
        program, ops=ops, graphs=tuple(graphs[name] for name in called), lengths=(*program.lengths, *lengths)
    )
