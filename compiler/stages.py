"""Say when each value of a captured graph is known: before the run, with the request, or only with the latents.

Stages are sets of what a value depends on: ``step`` (numbers that differ from call to call, the timestep), ``request``
(prompt and scalars) and ``latent`` (noise, and whatever follows from it). They join along the data flow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch.export.graph_signature import InputKind

from diffc.compiler.ir import Graph, Program, Ref

Stage = frozenset[str]

BUILD: Stage = frozenset()
STEP: Stage = frozenset({"step"})
REQUEST: Stage = frozenset({"request"})
LATENT: Stage = frozenset({"latent"})
NAMES = ("step", "request", "request_step", "latent")


def stages_of_values(program: Program) -> dict[str, Stage]:
    """Map each value of a program to its stage."""
    stages: dict[str, Stage] = {item.name: REQUEST for item in program.inputs} | {t.name: BUILD for t in program.tables}
    for op in program.ops:
        stage = LATENT if op.operator == "noise" else _join(stages[name] for name in op.reads())
        stages |= {value.name: stage for value in op.results}
    return stages


def parameters_by_stage(program: Program) -> dict[str, int]:
    """Count the denoiser's parameters by the stage in which they are first needed; the graphs must have bodies.

    The denoiser is the component that is called most often with latents, or of several the largest. A parameter that
    meets values of several stages counts for the latest of them; one that meets constants only counts for none.
    """
    values = stages_of_values(program)
    graph = _denoiser(program, values)
    if graph is None or graph.body is None:
        return dict.fromkeys(NAMES, 0)
    calls = [op for op in program.ops if op.operator == graph.name]
    ports = {}
    for port in graph.inputs:
        given = [op.attr(port.name) for op in calls]
        joined = _join(values[literal.name] for literal in given if isinstance(literal, Ref))
        ports[port.name] = joined | (STEP if len(set(map(repr, given))) > 1 and not joined else BUILD)
    return _count(graph, ports)


def _denoiser(program: Program, values: Mapping[str, Stage]) -> Graph | None:
    calls = [op.operator for op in program.ops if any("latent" in values[name] for name in op.reads())]
    weighty = [graph for graph in program.graphs if graph.name in calls and _size(graph)]
    return max(weighty, key=lambda graph: (calls.count(graph.name), _size(graph)), default=None)


def _size(graph: Graph) -> int:
    return sum(weight.numel() for weight in graph.body.state_dict.values()) if graph.body else 0


def _count(graph: Graph, ports: Mapping[str, Stage]) -> dict[str, int]:
    counts = dict.fromkeys(NAMES, 0)
    sizes: dict[str, int] = {}
    made_of: dict[str, set[str]] = {}
    stages: dict[str, Stage] = {}
    used: dict[str, Stage] = {}
    inputs = iter(graph.inputs)
    kinds = {spec.arg.name: spec.kind for spec in graph.body.graph_signature.input_specs}
    for node in graph.body.graph.nodes:
        if node.op == "placeholder":
            user = kinds[node.name] == InputKind.USER_INPUT
            stages[node.name] = ports[next(inputs).name] if user else BUILD
            if kinds[node.name] == InputKind.PARAMETER:
                sizes[node.name] = node.meta["val"].numel()
                made_of[node.name] = {node.name}
        elif node.op == "call_function":
            stages[node.name] = _join(stages[source.name] for source in node.all_input_nodes)
            parameters = set[str]().union(*(made_of.get(source.name, ()) for source in node.all_input_nodes))
            if all(source.name in made_of for source in node.all_input_nodes):
                made_of[node.name] = parameters
            for name in parameters:
                used[name] = used.get(name, BUILD) | stages[node.name]
    for name, stage in used.items():
        if stage:
            key = "latent" if "latent" in stage else "request_step" if len(stage) == 2 else next(iter(stage))
            counts[key] += sizes[name]
    return counts


def _join(stages: Iterable[Stage]) -> Stage:
    return frozenset().union(*stages)
