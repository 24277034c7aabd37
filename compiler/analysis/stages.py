"""Compute when each value is known: before the run, with the request, or only with the latents.

Stages are the sets of sources that a value depends on: ``step`` (literals that differ from call to call, such as the
timestep), ``request`` (prompt and scalars) and ``latent`` (noise, and all values computed from it). They join along the
data flow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import fx

from diffc.compiler.graph.body import size
from diffc.compiler.ir.program import Graph, Literal, Op, Program, Ref

Stage = frozenset[str]

BUILD: Stage = frozenset()
STEP: Stage = frozenset({"step"})
REQUEST: Stage = frozenset({"request"})
LATENT: Stage = frozenset({"latent"})
NAMES = ("step", "request", "request_step", "latent")


def name_of(stage: Stage) -> str:
    """Name a stage by its latest source; ``build`` where there is none."""
    return "latent" if "latent" in stage else "_".join(sorted(stage)) or "build"


def stages_of_values(program: Program) -> dict[str, Stage]:
    """Map each value of a program to its stage."""
    stages: dict[str, Stage] = {item.name: REQUEST for item in program.inputs} | {t.name: BUILD for t in program.tables}
    for op in program.ops:
        stage = LATENT if op.operator == "noise" else join(stages[name] for name in op.reads())
        stages |= dict.fromkeys(op.defines(), stage)
    return stages


def stages_of_ports(graph: Graph, programs: Sequence[Program]) -> dict[str, Stage]:
    """Map each port of a graph to the stage of the values that programs pass to it.

    A literal or table that is the same in every call is known at build, one that differs between calls is ``step``; a
    value that a program computes is of the request at least.
    """
    stages = dict.fromkeys((port.name for port in graph.inputs), BUILD)
    literals: dict[str, set[str]] = {port.name: set() for port in graph.inputs}
    for program in programs:
        values, tables = stages_of_values(program), {table.name for table in program.tables}
        for op in calls(program, graph):
            for port, literal in op.attrs:
                if isinstance(literal, Ref) and literal.name not in tables:
                    stages[port] |= values[literal.name] or REQUEST
                else:
                    literals[port].add(repr(literal))
    return {port: stage or (STEP if len(literals[port]) > 1 else BUILD) for port, stage in stages.items()}


def calls(program: Program, graph: Graph) -> list[Op]:
    """List the calls of a graph, in order."""
    return [op for op in program.ops if op.operator == graph.name]


def known(op: Op, ports: Mapping[str, Stage]) -> tuple[tuple[str, Literal], ...]:
    """Return the literals of a call that differ from those of other calls."""
    return tuple((port, literal) for port, literal in op.attrs if ports[port] == STEP)


def stages_of_nodes(body: fx.GraphModule, graph: Graph, ports: Mapping[str, Stage]) -> dict[fx.Node, Stage]:
    """Map each node of a captured graph to its stage."""
    stages: dict[fx.Node, Stage] = {}
    inputs = iter(graph.inputs)
    for node in body.graph.nodes:
        port = next(inputs) if node.op == "placeholder" else None
        stages[node] = ports[port.name] if port else join(stages[source] for source in node.all_input_nodes)
    return stages


def join(stages: Iterable[Stage]) -> Stage:
    """Return the stage of a value that depends on several values."""
    return frozenset().union(*stages)


def denoiser(program: Program) -> Graph | None:
    """Find the graph that is called most often with latents, or of several the largest."""
    values = stages_of_values(program)
    called = [op.operator for op in program.ops if any("latent" in values[name] for name in op.reads())]
    weighty = [graph for graph in program.graphs if graph.name in called and size(graph)]
    return max(weighty, key=lambda graph: (called.count(graph.name), size(graph)), default=None)


def denoisers(programs: Sequence[Program]) -> list[Graph]:
    """List the graphs of the denoiser: with and without guidance, but not the graphs that run before the loop."""
    largest = denoiser(programs[0])
    graphs = {graph.name: graph for program in programs for graph in program.graphs}.values()
    return [g for g in graphs if largest is not None and g.component == largest.component and not g.stage]
