"""Turn the opaque calls of a trace into graphs: each distinct signature is captured once by ``torch.export``."""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._sympy.value_ranges import bound_sympy

from diffc.compiler.errors import CaptureError, VerifyError
from diffc.compiler.graph.aten import STRIDELESS, Trait, has
from diffc.compiler.graph.complex_values import separate_complex
from diffc.compiler.graph.exported_functions import ExportedFunctions
from diffc.compiler.graph.size_branches import need_every_branch
from diffc.compiler.graph.symbolic import concrete, counted, counted_sizes, dynamic_axes, is_open, mode_of, ranges
from diffc.compiler.ir.program import Type

aten = torch.ops.aten
PRODUCTS = (aten.matmul.default, aten.mm.default, aten.addmm.default)
"""The products that a linear layer is decomposed into; the last begins with the bias."""

CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
"""Convolutions by the number of their strides."""


LAYER = "layer"
"""The key of a node's metadata that names the layer whose weight the node reads, as the checkpoint names it."""


def type_of(tensor: torch.Tensor) -> Type:
    """Describe a tensor in the terms of the IR. Raises `VerifyError` where it has an open size."""
    if is_open(tensor):
        what = f"a value {tensor.dtype}{list(tensor.shape)} of a graph has a size that each request decides"
        raise VerifyError(what, fix="leave out the technique that needs fixed sizes")
    return Type(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def layers_of(module: nn.Module) -> dict[str, str]:
    """Map the paths of the tensors that a module holds to their layers.

    Where it consists of graphs, the metadata of their nodes names the layers, and other tensors have none; elsewhere
    the path itself names the layer.
    """
    graphs = {path: part for path, part in module.named_modules() if isinstance(part, fx.GraphModule)}
    if not graphs:
        tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        return {path: path.removesuffix(".weight").removesuffix(".bias") for path, _ in tensors}
    return {
        f"{path}.{node.target}".removeprefix("."): node.meta[LAYER]
        for path, part in graphs.items()
        for node in part.graph.find_nodes(op="get_attr")
        if LAYER in node.meta
    }


def export(
    name: str,
    module: nn.Module,
    example: Sequence[torch.Tensor],
    *,
    layers: Mapping[str, str] | None = None,
    sizes: Sequence[dict[int, Any] | None] = (),
) -> ExportedProgram:
    """Capture a module with ``torch.export`` as operators that write into nothing and do not ask for strides.

    A module of operators is lifted, which takes half of the time. ``layers`` names the layers of the module's tensors
    by their paths; else `layers_of` does. ``sizes`` are the open ones of each tensor, as `dynamic_sizes` describes
    them, of a module whose ``forward`` takes any number of tensors; without them ``example`` may be fake tensors of
    another graph, whose open sizes stay open. Raises `CaptureError` with the name.
    """
    with _named_failure(name), one_layout(), ExportedFunctions(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own deprecated names, used by torch
        if isinstance(module, fx.GraphModule):
            body = _strideless(lift(module, example))
        else:
            body = _captured(name, module, concrete(example), sizes or dynamic_axes(example))
        separate_complex(body)
    _need_declared(name, body, sizes)
    _name_layers(body, layers_of(module) if layers is None else layers)
    _recompose(body.graph)
    _convert_only(body.graph)
    body.graph.eliminate_dead_code()
    body.graph_module.recompile()
    return body


def _captured(
    name: str, module: nn.Module, example: Sequence[torch.Tensor], axes: Sequence[dict[int, Any] | None]
) -> ExportedProgram:
    """Capture the code of a module at the sizes of an example, of which those of ``axes`` are open."""

    def captured(inputs: Sequence[torch.Tensor], dynamic: Any = None) -> ExportedProgram:
        body = _strideless(torch.export.export(module, tuple(inputs), strict=False, dynamic_shapes=dynamic))
        return body if all(map(_is_function, body.graph.nodes)) else _strideless(body.run_decompositions({}))

    body = captured(example, (tuple(axes),) if any(axes) else None)
    if any(axes):
        need_every_branch(name, body, example, lambda sizes: captured(sizes, (tuple(map(_free, axes)),)))
    return body


def _free(axes: dict[int, Any] | None) -> dict[int, Any] | None:
    """Return open axes of a tensor that a branch may fix."""
    return axes and {axis: torch.export.Dim.AUTO(min=size.min, max=size.max) for axis, size in axes.items()}


def _need_declared(name: str, body: ExportedProgram, sizes: Sequence[dict[int, Any] | None]) -> None:
    """Raise `CaptureError` where a graph holds for fewer sizes than were declared open, as after a branch on one."""
    ports = dict(zip(body.graph_signature.user_inputs, sizes, strict=False))
    for node in body.graph.find_nodes(op="placeholder"):
        for axis, declared in (ports.get(node.name) or {}).items():
            size = node.meta["val"].shape[axis]
            if isinstance(size, torch.SymInt):
                held = bound_sympy(size.node.expr, body.range_constraints)
                least, most = held.lower, held.upper
            else:
                least, most = size, size
            if least > max(declared.min, 2) or most < declared.max:
                span = f"{least} to {most} of {declared.min} to {declared.max}"
                what = f"{name} computes by the size of {node.name}'s axis {axis}, which each request decides: {span}"
                fix = "compute the same for every number of tokens, without a branch on a size"
                raise CaptureError(what[:300], where=f"the component {name}", fix=fix)


def _name_layers(body: ExportedProgram, layers: Mapping[str, str]) -> None:
    """Write the names of layers into the metadata of the ports that take their weights."""
    targets = {spec.arg.name: spec.target for spec in body.graph_signature.input_specs}
    for node in body.graph.find_nodes(op="placeholder"):
        layer = layers.get(targets[node.name] or "")
        if layer is not None:
            node.meta[LAYER] = layer


def _recompose(graph: fx.Graph) -> None:
    """Restore layers that ``torch.vmap`` took apart: a product with a transposed weight, a convolution of any kind."""
    for node in graph.nodes:
        if node.target is aten.convolution.default and not node.args[6] and len(node.args[3]) in CONVOLUTIONS:
            node.target, node.args = CONVOLUTIONS[len(node.args[3])], (*node.args[:6], node.args[8])
        *bias, x, weight = node.args if node.target in PRODUCTS and not node.kwargs else (None, None)
        if isinstance(weight, fx.Node) and weight.target is aten.t.default:
            node.target, node.args = aten.linear.default, (x, weight.args[0], *bias)


def _convert_only(graph: fx.Graph) -> None:
    """Replace conversions by one operator, and drop those to the same type, and dropout, which does nothing here."""
    for node in list(graph.nodes):
        is_conversion = has(node.target, Trait.CONVERTS)
        if is_conversion:
            node.target, node.args = aten._to_copy.default, node.args[:1]
            node.kwargs = {"dtype": node.meta["val"].dtype}
        converts = node.target is aten._to_copy.default and node.args[0].meta["val"].dtype != node.meta["val"].dtype
        idle = is_conversion and not converts or node.target is aten.dropout.default and not node.args[2]
        if node.target is aten._assert_tensor_metadata.default:  # the arguments of a conversion
            graph.erase_node(node)
        elif idle and all(user.op != "output" for user in node.users):  # outputs keep their names
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def one_layout() -> AbstractContextManager[None]:
    """Make attention return one layout on every device and in every exporter."""
    return sdpa_kernel(SDPBackend.MATH)


def _strideless(body: ExportedProgram) -> ExportedProgram:
    for node in body.graph.nodes:
        node.target = STRIDELESS.get(node.target, node.target)
    body.graph_module.recompile()
    return body


def _is_function(node: fx.Node) -> bool:
    """Return whether a node is an operator that writes into nothing; those of ``torch.vmap`` are no operators.

    Python's own functions take results apart, and compute with sizes.
    """
    if node.op != "call_function" or isinstance(node.target, BuiltinFunctionType):
        return True
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable


@contextmanager
def _named_failure(name: str) -> Any:
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        raise CaptureError(
            f"{name} cannot be captured: {type(error).__name__}: {first[0] if first else ''}",
            where=f"the component {name}",
            fix="its forward must be free of branches on values; report it with the model's configuration",
        ) from error


def lift(module: fx.GraphModule, example: Sequence[torch.Tensor]) -> ExportedProgram:
    """Lift the tensors that a module holds to inputs of its graph, and record the type of each node's result.

    Every node of the module is a port, a tensor of its own, or an operator that writes into nothing; ``example`` has
    the shapes and types of its ports: as fake tensors, where a size is open. The module is not changed; its
    tensors are shared.
    """
    lifted, env, held = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, fx.Node]()
    tensors, constants = dict[str, torch.Tensor](), dict[str, Any]()
    inputs, fakes, mode = list[InputSpec](), list[torch.Tensor](), mode_of(example, module.graph)
    for node in module.graph.find_nodes(op="get_attr"):
        target = str(node.target)
        if target not in held:
            tensor = operator.attrgetter(target)(module)
            kind = _kind(module, target)
            (constants if kind == InputKind.CONSTANT_TENSOR else tensors)[target] = tensor
            held[target] = lifted.placeholder(re.sub(r"\W", "_", f"{kind.name.lower()}_{target}"))
            persistent = True if kind == InputKind.BUFFER else None
            inputs.append(InputSpec(kind, TensorArgument(held[target].name), target, persistent))
            fakes.append(_fake(tensor, mode))
        env[node] = held[target]
    for node, tensor in zip(module.graph.find_nodes(op="placeholder"), example, strict=True):
        env[node] = lifted.placeholder(node.name)
        inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(env[node].name), None))
        fakes.append(tensor if is_open(tensor) else _fake(tensor, mode))
    for node in module.graph.nodes:
        if node not in env:
            env[node] = lifted.node_copy(node, env.__getitem__)
    graph = fx.GraphModule(nn.Module(), lifted)
    with counted_sizes(mode), mode:
        _Typed(graph, mode).run(*fakes)
    results: Any = lifted.output_node().args[0]
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]
    given_as = pytree.tree_structure((tuple(example), {}))
    signature = ModuleCallSignature([], [], given_as, pytree.tree_structure((0,) * len(outputs)))
    return ExportedProgram(
        root=graph,
        graph=lifted,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=tensors,
        range_constraints=ranges(example),
        module_call_graph=[ModuleCallEntry("", signature)],
        constants=constants,
    )


class _Typed(fx.Interpreter):
    """Run a graph on shapes and types, and record the type of each node's result."""

    def __init__(self, graph: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(graph)
        self.symbols = mode.shape_env

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.op != "output":
            n.meta = {"val": result, **counted(result, self.symbols)}
        return result


def _kind(module: fx.GraphModule, target: str) -> InputKind:
    owner, _, name = target.rpartition(".")
    holder = module.get_submodule(owner)
    if name in holder._parameters:
        return InputKind.PARAMETER
    return InputKind.BUFFER if name in holder._buffers else InputKind.CONSTANT_TENSOR


def _fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
