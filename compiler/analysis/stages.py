"""Say when each value is known: before the run, with the request, or only with the latents.

Stages are sets of what a value depends on: ``step`` (numbers that differ from call to call, the timestep), ``request``
(prompt and scalars) and ``latent`` (noise, and whatever follows from it). They join along the data flow.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from diffc.compiler.ir.program import Graph, Literal, Op, Program, Ref

Stage = frozenset[str]

BUILD: Stage = frozenset()
STEP: Stage = frozenset({"step"})
REQUEST: Stage = frozenset({"request"})
LATENT: Stage = frozenset({"latent"})
NAMES = ("step", "request", "request_step", "latent")


def name_of(stage: Stage) -> str:
    """Name a stage: the latest of what a value depends on; ``build`` where that is nothing."""
    return "latent" if "latent" in stage else "_".join(sorted(stage)) or "build"


def stages_of_values(program: Program) -> dict[str, Stage]:
    """Map each value of a program to its stage."""
    stages: dict[str, Stage] = {item.name: REQUEST for item in program.inputs} | {t.name: BUILD for t in program.tables}
    for op in program.ops:
        stage = LATENT if op.operator == "noise" else join(stages[name] for name in op.reads())
        stages |= {value.name: stage for value in op.results}
    return stages


def stages_of_ports(graph: Graph, programs: Sequence[Program]) -> dict[str, Stage]:
    """Map each port of a graph to the stage of what the programs give it.

    What is the same literal or table in every call is known at build, what differs between them is ``step``; a value
    that a program computes is of the request at least.
    """
    stages = dict.fromkeys((port.name for port in graph.inputs), BUILD)
    given: dict[str, set[str]] = {port.name: set() for port in graph.inputs}
    for program in programs:
        values, tables = stages_of_values(program), {table.name for table in program.tables}
        for op in calls(program, graph):
            for port, literal in op.attrs:
                if isinstance(literal, Ref) and literal.name not in tables:
                    stages[port] |= values[literal.name] or REQUEST
                else:
                    given[port].add(repr(literal))
    return {port: stage or (STEP if len(given[port]) > 1 else BUILD) for port, stage in stages.items()}


def calls(program: Program, graph: Graph) -> list[Op]:
    """List the calls of a graph, in order."""
    return [op for op in program.ops if op.operator == graph.name]


def known(op: Op, ports: Mapping[str, Stage]) -> tuple[tuple[str, Literal], ...]:
    """Give what a call says at build that other calls say differently."""
    return tuple((port, literal) for port, literal in op.attrs if ports[port] == STEP)


def body_of(graph: Graph) -> fx.GraphModule:
    """Give a captured graph as a module whose nodes are ports, weights and operators only."""
    module: fx.GraphModule = graph.body.module(check_guards=False)
    return module


def stages_of_nodes(body: fx.GraphModule, graph: Graph, ports: Mapping[str, Stage]) -> dict[fx.Node, Stage]:
    """Map each node of a captured graph to its stage."""
    stages: dict[fx.Node, Stage] = {}
    inputs = iter(graph.inputs)
    for node in body.graph.nodes:
        port = next(inputs) if node.op == "placeholder" else None
        stages[node] = ports[port.name] if port else join(stages[source] for source in node.all_input_nodes)
    return stages


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
    """Count the multiply-adds of one node, as PyTorch's counter of floating-point operations does."""
    tags = getattr(node.target, "tags", ())
    if node.op != "call_function" or node.target is operator.getitem or torch.Tag.pointwise in tags:
        return 0
    if len(node.all_input_nodes) < 2:
        return 0

    def empty(source: fx.Node) -> object:
        value = source.meta["val"]
        return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value

    args, kwargs = pytree.tree_map_only(fx.Node, empty, (node.args, dict(node.kwargs)))
    with FlopCounterMode(display=False) as counter:
        node.target(*args, **kwargs)  # type: ignore[operator]
    return int(counter.get_total_flops()) // 2


def join(stages: Iterable[Stage]) -> Stage:
    """Give the stage of what is made of several values."""
    return frozenset().union(*stages)


def denoiser(program: Program) -> Graph | None:
    """Find the graph that is called most often with latents, or of several the largest."""
    values = stages_of_values(program)
    called = [op.operator for op in program.ops if any("latent" in values[name] for name in op.reads())]
    weighty = [graph for graph in program.graphs if graph.name in called and size(graph)]
    return max(weighty, key=lambda graph: (called.count(graph.name), size(graph)), default=None)


def denoisers(programs: Sequence[Program]) -> list[Graph]:
    """List the graphs of the denoiser: with and without guidance, but not what is computed before the loop."""
    found = denoiser(programs[0])
    graphs = {graph.name: graph for program in programs for graph in program.graphs}.values()
    return [g for g in graphs if found is not None and g.component == found.component and not g.stage]


def size(graph: Graph) -> int:
    """Count the weights of a graph; none where it has no body."""
    return sum(weight.numel() for weight in graph.body.state_dict.values()) if graph.body else 0
