"""Count a denoiser's parameters and multiply-adds by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from diffc.compiler.analysis.stages import BUILD, NAMES, Stage, denoiser, name_of, stages_of_nodes, stages_of_ports
from diffc.compiler.graph.aten import Trait, has
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.symbolic import is_open, typical
from diffc.compiler.ir.program import Graph, Program


@dataclass(frozen=True)
class Work:
    """Count a denoiser's parameters, and the multiply-adds of one call, by the stage that needs them first."""

    parameters: Mapping[str, int]
    multiply_adds: Mapping[str, int]


def work_by_stage(programs: Sequence[Program]) -> Work:
    """Count the work of the denoiser; the graphs must have bodies.

    A parameter that meets values of several stages counts for the latest of them; one that meets constants only counts
    for none.
    """
    graph = denoiser(programs[0])
    none = dict.fromkeys(NAMES, 0)
    return Work(none, none) if graph is None else work_of_graph(graph, stages_of_ports(graph, programs))


def work_of_graph(graph: Graph, ports: Mapping[str, Stage]) -> Work:
    """Count the work of one graph, given the stages of its ports."""
    body = body_of(graph)
    stages = stages_of_nodes(body, graph, ports)
    weights = {p for p, _ in body.named_parameters()}
    made_of: dict[fx.Node, set[fx.Node]] = {}
    used: dict[fx.Node, Stage] = {}
    macs = dict.fromkeys(NAMES, 0)
    for node in body.graph.nodes:
        if node.op == "get_attr":
            made_of[node] = {node} if node.target in weights else set()
        elif node.op == "call_function":
            sources = node.all_input_nodes
            parameters = set[fx.Node]().union(*(made_of.get(source, ()) for source in sources))
            if sources and all(source in made_of for source in sources):
                made_of[node] = parameters
            for parameter in parameters:
                used[parameter] = used.get(parameter, BUILD) | stages[node]
            if stages[node]:
                macs[name_of(stages[node])] += multiply_adds(node)
    counts = dict.fromkeys(NAMES, 0)
    for parameter, stage in used.items():
        if stage:
            counts[name_of(stage)] += parameter.meta["val"].numel()
    return Work(counts, macs)


def multiply_adds(node: fx.Node) -> int:
    """Count the multiply-adds of one node, as PyTorch's counter of floating-point operations does.

    Open sizes count as they were when the graph was exported; what is no operator, such as a region with a mode of its
    own, counts nothing.
    """
    if not isinstance(node.target, torch._ops.OpOverload) or has(node.target, Trait.POINTWISE):
        return 0
    if len(node.all_input_nodes) < 2:
        return 0

    def empty(source: fx.Node) -> object:
        value = source.meta["val"]
        if is_open(value):
            return torch.empty([typical(size) for size in value.shape], dtype=value.dtype, device="meta")
        if isinstance(value, torch.SymInt):
            return typical(value)
        return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value

    args, kwargs = pytree.tree_map_only(fx.Node, empty, (node.args, dict(node.kwargs)))
    with FlopCounterMode(display=False) as counter:
        node.target(*args, **kwargs)
    return int(counter.get_total_flops()) // 2
