"""Turn the opaque calls of a trace into graphs: each distinct signature is captured once by ``torch.export``."""

from __future__ import annotations

import copy
import inspect
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from diffc.compiler.checkpoint.load_errors import first_line
from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.graph.lift import lift
from diffc.compiler.ir.program import BUILTINS, Graph, Program, Type, Value

aten = torch.ops.aten
STRIDELESS = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}
"""Operators that ask how a tensor is stored, and those that mean the same and do not."""

PRODUCTS = (aten.matmul.default, aten.mm.default, aten.addmm.default)
"""What a linear layer is taken apart into; the last begins with the bias."""

CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
"""Convolutions by the number of their strides."""

CONVERSIONS = (aten.to, aten.type_as, aten._to_copy)

ENTRY_POINTS = ("forward", "encode", "decode")
"""The methods by which a pipeline calls a component."""


def type_of(tensor: torch.Tensor) -> Type:
    """Describe a tensor in the terms of the IR."""
    return Type(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


Key = tuple[str, str, str, tuple[Type | str, ...]]
"""A component, its method, the structure of its arguments, and for each the tensor's type or what it prints."""


@dataclass
class Signature:
    """One way in which a component is called: which method, its ports, its static arguments and what it returns."""

    name: str
    component: str
    module: nn.Module
    method: Callable[..., Any]
    structure: pytree.TreeSpec
    leaves: list[Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    returned: Any
    used: set[int] = field(default_factory=set)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Make tensors of the ports' types."""
        return tuple(
            torch.zeros(port.type.shape, dtype=getattr(torch, port.type.dtype)) for port in self.inputs if port.type
        )


class Capture:
    """Collect the calls of one or several traces, then export a graph for each distinct signature.

    Programs that are traced with one `Capture` share graphs. Outputs that no program reads are not computed.
    """

    def __init__(self) -> None:
        self.fake_mode = FAKES
        self.signatures: dict[Key, Signature] = {}

    def call(
        self, component: str, module: nn.Module, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Signature, list[Any]]:
        """Look up the signature of a call, running it on fake tensors if it is new; give its tensors in port order."""
        original = getattr(type(module), method).__get__(module)
        given = bind(original, args, kwargs)
        leaves, structure = pytree.tree_flatten(given)
        ports, tensors = tensor_ports(given)
        static = [type_of(leaf) if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves]
        key = (component, method, str(structure), tuple(static))
        if key not in self.signatures:
            with _misfit(component):
                returned = self._fake_run(original, structure, leaves)
            self.signatures[key] = Signature(
                self._graph_name(component, method),
                component,
                module,
                original,
                structure,
                [_PORT if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves],
                ports,
                _output_ports(returned, {port.name for port in ports}),
                returned,
            )
        return self.signatures[key], tensors

    def _graph_name(self, component: str, method: str) -> str:
        name = component if method == "forward" else f"{component}_{method}"
        name = f"{name}_graph" if name in BUILTINS else name
        taken = {signature.name for signature in self.signatures.values()}
        return next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)

    def _fake_run(self, method: Callable[..., Any], structure: pytree.TreeSpec, leaves: list[Any]) -> Any:
        fakes = [self.fake_mode.from_tensor(t) if type(t) is torch.Tensor else getattr(t, "fake", t) for t in leaves]
        given = pytree.tree_unflatten(fakes, structure)
        with self.fake_mode, torch.no_grad():
            return method(**given)

    def graphs(self, programs: Iterable[Program]) -> tuple[Program, ...]:
        """Export every signature that the programs call, with the outputs that they read, and give them the graphs."""
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
            whole.name: part.name
            for theirs, whole in self.signatures.items()
            for mine, part in self.signatures.items()
            if whole.used == part.used and mine[:-1] == theirs[:-1] and _is_part(mine[-1], theirs[-1])
        }


def _is_part(part: tuple[Type | str, ...], whole: tuple[Type | str, ...]) -> bool:
    """Say whether arguments are the same but for tensors, whose batches are all the same part of the other's."""
    changed = [(a, b) for a, b in zip(part, whole, strict=True) if a != b]
    ratios = {_ratio(a, b) for a, b in changed}
    return len(ratios) == 1 and None not in ratios


def _ratio(part: Type | str, whole: Type | str) -> int | None:
    if isinstance(part, str) or isinstance(whole, str) or not part.shape or part.dtype != whole.dtype:
        return None
    ratio, rest = divmod(whole.shape[0], part.shape[0]) if whole.shape[1:] == part.shape[1:] else (0, 0)
    return ratio if ratio > 1 and not rest else None


def bind(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Name the arguments of a call as the method's signature does."""
    bound = inspect.signature(method).bind(*args, **kwargs)
    return {**bound.arguments.pop("kwargs", {}), **bound.arguments}


def tensor_ports(given: dict[str, Any]) -> tuple[tuple[Value, ...], list[torch.Tensor]]:
    """List the tensors among named arguments, and a port for each, named by the way to it."""
    paths, _ = pytree.tree_flatten_with_path(given)
    found = [(Value(_port_name(path), type_of(leaf)), leaf) for path, leaf in paths if isinstance(leaf, torch.Tensor)]
    return tuple(port for port, _ in found), [leaf for _, leaf in found]


class _Port:
    """Stand for a tensor among the leaves of a call's arguments."""


_PORT = _Port()


def _port_name(path: pytree.KeyPath) -> str:
    parts = [re.sub(r"\W", "", str(getattr(key, "key", getattr(key, "idx", key)))) for key in path]
    return "_".join(parts)


def _output_ports(returned: Any, inputs: set[str]) -> tuple[Value, ...]:
    paths, _ = pytree.tree_flatten_with_path(dict(returned) if isinstance(returned, dict) else returned)
    ports = []
    for path, leaf in paths:
        for key, tensor in _held(leaf):
            name = "_".join(part for part in (_port_name(path), key) if part)
            name = f"out_{name}" if not name or name[0].isdigit() else name
            name = "out" if name == "out_0" else name
            ports.append(Value(f"{name}_out" if name in inputs else name, type_of(tensor)))
    return tuple(ports)


def _held(leaf: Any) -> list[tuple[str, torch.Tensor]]:
    """List the tensors of a leaf: itself, or the attributes of an object such as a distribution."""
    if isinstance(leaf, torch.Tensor):
        return [("", leaf)]
    attributes = vars(leaf).items() if hasattr(leaf, "__dict__") and not isinstance(leaf, type) else ()
    return [(name, value) for name, value in attributes if isinstance(value, torch.Tensor)]


def returned_tensors(returned: Any) -> list[torch.Tensor]:
    """List the tensors that a component returned, in order, those inside objects too."""
    return [tensor for leaf in pytree.tree_leaves(returned) for _, tensor in _held(leaf)]


def with_tensors(returned: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """Give the same structure with other tensors."""

    def replaced(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return next(tensors)
        names = [name for name, _ in _held(leaf)]
        if names:
            leaf = copy.copy(leaf)
            for name in names:
                setattr(leaf, name, next(tensors))
        return leaf

    leaves, structure = pytree.tree_flatten(returned)
    return pytree.tree_unflatten([replaced(leaf) for leaf in leaves], structure)


class _Call(nn.Module):
    """Take the tensors of a call in port order and return the outputs that are used."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self.module = signature.module
        self.signature = signature

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ports = iter(tensors)
        leaves = [next(ports) if isinstance(leaf, _Port) else leaf for leaf in self.signature.leaves]
        returned = self.signature.method(**pytree.tree_unflatten(leaves, self.signature.structure))
        outputs = returned_tensors(returned)
        return tuple(outputs[i] for i in sorted(self.signature.used))


def export(name: str, module: nn.Module, example: Sequence[torch.Tensor]) -> ExportedProgram:
    """Capture a module with ``torch.export`` as operators that write into nothing and do not ask for strides.

    A module of operators is lifted, which takes half of the time. Raises `CaptureError` that says the name.
    """
    with _named_failure(name), one_layout(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own deprecated names, used by torch
        if isinstance(module, fx.GraphModule):
            body = _strideless(lift(module, example))
        else:
            body = _strideless(torch.export.export(module, tuple(example), strict=False))
        if not all(map(_is_function, body.graph.nodes)):
            body = _strideless(body.run_decompositions({}))
    _recompose(body.graph)
    _convert_only(body.graph)
    body.graph.eliminate_dead_code()
    body.graph_module.recompile()
    return body


def _recompose(graph: fx.Graph) -> None:
    """Let layers be what ``torch.vmap`` took apart: a product with a transposed weight, a convolution of any kind."""
    for node in graph.nodes:
        if node.target is aten.convolution.default and not node.args[6] and len(node.args[3]) in CONVOLUTIONS:
            node.target, node.args = CONVOLUTIONS[len(node.args[3])], (*node.args[:6], node.args[8])
        *bias, x, weight = node.args if node.target in PRODUCTS and not node.kwargs else (None, None)
        if isinstance(weight, fx.Node) and weight.target is aten.t.default:
            node.target, node.args = aten.linear.default, (x, weight.args[0], *bias)


def _convert_only(graph: fx.Graph) -> None:
    """Spell conversions alike, and leave out those to the same type, and dropout, which does nothing here."""
    for node in list(graph.nodes):
        packet = getattr(node.target, "overloadpacket", None)
        if packet in CONVERSIONS:
            node.target, node.args = aten._to_copy.default, node.args[:1]
            node.kwargs = {"dtype": node.meta["val"].dtype}
        converts = node.target is aten._to_copy.default and node.args[0].meta["val"].dtype != node.meta["val"].dtype
        idle = packet in CONVERSIONS and not converts or packet is aten.dropout and not node.args[2]
        if packet is aten._assert_tensor_metadata:  # of what a conversion was given
            graph.erase_node(node)
        elif idle and all(user.op != "output" for user in node.users):  # outputs keep their names
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def one_layout() -> AbstractContextManager[None]:
    """Let attention give the same layout to whoever looks at a graph, torch's exporters among them."""
    return sdpa_kernel(SDPBackend.MATH)


def _strideless(body: ExportedProgram) -> ExportedProgram:
    for node in body.graph.nodes:
        node.target = STRIDELESS.get(node.target, node.target)
    body.graph_module.recompile()
    return body


def _is_function(node: fx.Node) -> bool:
    """Say whether a node is an operator that writes into nothing; those of ``torch.vmap`` are no operators."""
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable


def _export(signature: Signature) -> Graph:
    body = export(signature.name, _Call(signature).eval(), signature.example())
    outputs = tuple(signature.outputs[i] for i in sorted(signature.used))
    return Graph(signature.name, signature.inputs, outputs, body, signature.component)


@contextmanager
def _misfit(component: str) -> Iterator[None]:
    """Say which component does not take what the pipeline gives it; torch's own report of it is for its developers."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException):
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise CaptureError(
            f"{component} does not fit what the pipeline gives it: {first_line(error)}",
            fix="check that the configurations of the checkpoint's components belong together",
        ) from error
    finally:
        log.disabled = before


@contextmanager
def _named_failure(name: str) -> Any:
    try:
        yield
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        raise CaptureError(
            f"{name} cannot be captured: {type(error).__name__}: {first[0] if first else ''}",
            where=f"the component {name}",
            fix="its forward must be free of branches on values; report it with the model's configuration",
        ) from error


def _with_graphs(program: Program, graphs: dict[str, Graph], signatures: dict[str, Signature]) -> Program:
    ops = tuple(
        replace(op, results=tuple(op.results[i] for i in sorted(signatures[op.operator].used)))
        if op.operator in signatures
        else op
        for op in program.ops
    )
    called = dict.fromkeys(op.operator for op in ops if op.operator in graphs)
    return replace(program, ops=ops, graphs=tuple(graphs[name] for name in called))
