"""Turn a module of operators into an exported program: what ``torch.export`` would find if it traced it again."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from diffc.compiler.graph.lazy_weights import FAKES


def lift(module: fx.GraphModule, example: Sequence[torch.Tensor]) -> ExportedProgram:
    """Make the tensors that a module holds inputs of its graph, and say of each node what it gives.

    Every node of the module is a port, a tensor of its own, or an operator that writes into nothing; ``example`` has
    the shapes and types of its ports. The module is not changed; its tensors are shared.
    """
    made, env, held = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, fx.Node]()
    tensors, constants = dict[str, torch.Tensor](), dict[str, Any]()
    inputs, given = list[InputSpec](), list[torch.Tensor]()
    for node in module.graph.find_nodes(op="get_attr"):
        target = str(node.target)
        if target not in held:
            tensor = operator.attrgetter(target)(module)
            kind = _kind(module, target)
            (constants if kind == InputKind.CONSTANT_TENSOR else tensors)[target] = tensor
            held[target] = made.placeholder(f"{kind.name.lower()}_{target.replace('.', '_')}")
            persistent = True if kind == InputKind.BUFFER else None
            inputs.append(InputSpec(kind, TensorArgument(held[target].name), target, persistent))
            given.append(_fake(tensor))
        env[node] = held[target]
    for node, tensor in zip(module.graph.find_nodes(op="placeholder"), example, strict=True):
        env[node] = made.placeholder(node.name)
        inputs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(env[node].name), None))
        given.append(_fake(tensor))
    for node in module.graph.nodes:
        if node not in env:
            env[node] = made.node_copy(node, env.__getitem__)
    graph = fx.GraphModule(nn.Module(), made)
    with FAKES:
        _Typed(graph).run(*given)
    results: Any = made.output_node().args[0]
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in results]
    given_as = pytree.tree_structure((tuple(example), {}))
    signature = ModuleCallSignature([], [], given_as, pytree.tree_structure((0,) * len(outputs)))
    return ExportedProgram(
        root=graph,
        graph=made,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=tensors,
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", signature)],
        constants=constants,
    )


class _Typed(fx.Interpreter):
    """Run a graph on shapes and types, and say of each node what it gives."""

    def run_node(self, n: fx.Node) -> object:
        found = super().run_node(n)
        if n.op != "output":
            n.meta = {"val": found}
        return found


def _kind(module: fx.GraphModule, target: str) -> InputKind:
    owner, _, name = target.rpartition(".")
    holder = module.get_submodule(owner)
    if name in holder._parameters:
        return InputKind.PARAMETER
    return InputKind.BUFFER if name in holder._buffers else InputKind.CONSTANT_TENSOR


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    with FAKES:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
