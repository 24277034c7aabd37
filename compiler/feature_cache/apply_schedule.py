"""Reuse features of earlier calls of the denoiser: its graph is divided into partitions, called where needed.

Before:
    y0 = unet(sample=x0)
    y1 = unet(sample=x1)

After, where the second call reuses the output of the middle of the graph in the first:
    h0, s0 = unet_piece_1(sample=x0)
    d0 = unet_piece_2(h=h0)
    y0 = unet_piece_3(s=s0, d=d0)
    h1, s1 = unet_piece_1(sample=x1)
    y1 = unet_piece_3(s=s1, d=d0)

A feature is a value of the program like any other, and each weight lies in one partition: see decision 0009.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from diffc.compiler.analysis.features import Feature, ReusePattern
from diffc.compiler.analysis.stages import denoisers, stages_of_values
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.partition import Partitions
from diffc.compiler.graph.body import example_inputs
from diffc.compiler.graph.export import export
from diffc.compiler.ir.program import Graph, Literal, Names, Op, Polynomial, Program, Ref, Table, Type, Value
from diffc.compiler.text_table import text_table

__all__ = ["Feature", "Reuse", "Schedule", "Scheduler", "cached", "check_interval", "evaluations", "since"]


@dataclass(frozen=True)
class Reuse:
    """Reuse a feature of the evaluation ``source``, which computes it.

    With a ``correction`` (a, b) its value becomes ``a * feature + b``; the tables broadcast to the feature's shape.
    """

    feature: Feature
    source: int
    correction: tuple[Table, Table] | None = None

    def __str__(self) -> str:
        corrected = " with a correction" if self.correction is not None else ""
        return f"{self.feature.node} of {self.source}{corrected}"


class Schedule(tuple[tuple[Reuse, ...], ...]):
    """List the features that each evaluation of a program reuses, in order; an empty tuple computes everything."""

    __slots__ = ()

    def __str__(self) -> str:
        rows = [(str(at), ", ".join(map(str, reuses)) or "-") for at, reuses in enumerate(self)]
        return text_table(("evaluation", "reuses"), rows)


Scheduler = Callable[[Program, Graph, int], Schedule]
"""Return the schedule of a program of so many evaluations, for one graph of the denoiser that it calls."""


def cached(programs: Sequence[Program], schedule: Scheduler) -> tuple[Program, ...]:
    """Divide the graphs of the denoiser so that every program follows its schedule; programs share the partitions.

    A graph without reuse in any schedule is left alone. Raises `PassError` for a feature that cannot be reused,
    and where there is no denoiser.
    """
    graphs = denoisers(programs)
    if not graphs:
        raise PassError("no program calls a denoiser", where=programs[0].name, fix="leave the cache out")
    calls = [_calls(program, graphs, schedule) for program in programs]
    partitions = dict[str, Partitions]()
    for graph in graphs:
        patterns = {call.pattern for of_program in calls for call in of_program if call.op.operator == graph.name}
        if any(patterns):
            partitions[graph.name] = Partitions(graph, programs, patterns)
    correct = _Corrections()
    return tuple(
        _Writing(program, mine, partitions, correct).run() for program, mine in zip(programs, calls, strict=True)
    )


def evaluations(program: Program, graphs: Iterable[str]) -> dict[int, int]:
    """Map the places of a denoiser's calls to their evaluations: the number of calls that they depend on.

    So both guidance branches are one evaluation, and both stages of a second-order solver are two.
    """
    names, depth, evaluation_of = set(graphs), dict[str, int](), dict[int, int]()
    for at, op in enumerate(program.ops):
        before = max((depth.get(name, 0) for name in op.reads()), default=0)
        if op.operator in names:
            evaluation_of[at] = before
        depth |= {value.name: before + (op.operator in names) for value in op.results}
    return evaluation_of


def check_interval(system: str, interval: int, program: Program, count: int) -> None:
    """Raise `PassError` where an interval is longer than the number of evaluations."""
    if interval > count:
        what = f"{system}: the interval is {interval}, and there are {count} evaluations of the denoiser"
        raise PassError(what, where=program.name, fix=f"give an interval of at most {count}, or more steps")


def since(refresh: Iterable[int], count: int) -> list[int]:
    """Return for each of ``count`` evaluations the last that refreshes; the first of all must."""
    steps = sorted(refresh)
    return [max(step for step in steps if step <= at) for at in range(count)]


@dataclass(eq=False)
class _Call:
    """Hold a call of the denoiser: the features that it reuses, with their source, and those that others reuse."""

    op: Op
    evaluation: int
    reuses: dict[Feature, tuple[Reuse, _Call]] = field(default_factory=dict)
    keeps: dict[Feature, str] = field(default_factory=dict)  # and the names of their values

    @property
    def pattern(self) -> ReusePattern:
        return frozenset(self.reuses)


def _calls(program: Program, graphs: Sequence[Graph], schedule: Scheduler) -> list[_Call]:
    """List a program's calls in order, with the source of each reused feature: a call of the same guidance branch.

    Where a branch has no call at the source, as where guidance begins later, the first call that reuses a feature
    computes it.
    """
    branches = _branches(program, {graph.name for graph in graphs})
    count = 1 + max((call.evaluation for branch in branches for call in branch), default=-1)
    by_name = {graph.name: graph for graph in graphs}
    schedules = {
        name: schedule(program, by_name[name], count) for name in {branch[0].op.operator: 0 for branch in branches}
    }
    for branch in branches:
        at = {call.evaluation: call for call in branch}
        for call in branch:
            for reuse in schedules[call.op.operator][call.evaluation]:
                holder = at.setdefault(reuse.source, call)
                if holder is not call:
                    assert reuse.feature not in holder.reuses, f"{reuse.feature} is not computed at {reuse.source}"
                    call.reuses[reuse.feature] = reuse, holder
                    holder.keeps[reuse.feature] = ""
    return [call for branch in branches for call in branch]


def _branches(program: Program, graphs: Iterable[str]) -> list[list[_Call]]:
    """Divide the calls into guidance branches: by their graph, and by the values of the request that they read."""
    stages, ops = stages_of_values(program), {value.name: op for op in program.ops for value in op.results}

    def unsplit(name: str) -> str:
        """Return the name of the value that a value is a part of: each step has its part."""
        while name in ops and ops[name].operator == "split":
            name = next(ops[name].reads())
        return name

    branches = dict[tuple[str, frozenset[str], int], list[_Call]]()
    for at, evaluation in evaluations(program, graphs).items():
        op = program.ops[at]
        request = frozenset(unsplit(name) for name in op.reads() if stages[name] == {"request"})
        twins = (branches.setdefault((op.operator, request, twin), []) for twin in range(len(program.ops)))
        next(branch for branch in twins if not branch or branch[-1].evaluation != evaluation).append(
            _Call(op, evaluation)
        )
    return list(branches.values())


class _Writing:
    """Write one program anew."""

    def __init__(
        self, program: Program, calls: Iterable[_Call], partitions: Mapping[str, Partitions], corrections: _Corrections
    ) -> None:
        self.program, self.partitions, self.corrections = program, partitions, corrections
        self.calls = {call.op.results: call for call in calls if call.op.operator in partitions}
        self.names, self.new = dict[str, str](), Names(program.types())
        self.ops, self.graphs, self.tables = list[Op](), dict[str, Graph](), list(program.tables)

    def run(self) -> Program:
        for op in self.program.ops:
            call = self.calls.get(op.results)
            if call is None:
                self.ops.append(op.renamed(self.names))
            else:
                self._call(call, op.renamed(self.names), self.partitions[op.operator])
        outputs = tuple(self.names.get(name, name) for name in self.program.outputs)
        graphs = {graph.name: graph for graph in self.program.graphs} | self.graphs
        tables = {table.name: table for table in self.tables}
        program = replace(
            self.program, graphs=tuple(graphs.values()), tables=tuple(tables.values()), ops=tuple(self.ops)
        )
        return replace(program, outputs=outputs).live()

    def _call(self, call: _Call, op: Op, cut: Partitions) -> None:
        """Call the partitions that a call needs, in the order in which they read from each other."""
        values: dict[str, Literal] = {node.name: op.attr(port.name) for node, port in cut.ports.items()}
        reused = {feature.node: feature for feature in call.reuses}
        results = {node.name: value for node, value in zip(cut.outputs, op.results, strict=True)}

        def value(node: fx.Node) -> Literal:
            if node.name not in values:
                values[node.name] = self._reused(reused[node.name], call, values, cut)
            return values[node.name]

        for partition in cut.partitions:
            if call.pattern not in partition.patterns:
                continue
            attrs = tuple(
                (port.name, value(node)) for port, node in zip(partition.graph.inputs, partition.reads, strict=True)
            )
            results_of_partition = tuple(
                results.get(n.name) or self._new(n.name, cut.type(n.name)) for n in partition.writes
            )
            values |= {
                node.name: Ref(value_of_node.name)
                for node, value_of_node in zip(partition.writes, results_of_partition, strict=True)
            }
            self.ops.append(Op(partition.graph.name, (), attrs, (), results_of_partition))
            self.graphs[partition.graph.name] = partition.graph
        for feature in call.keeps:
            call.keeps[feature] = self._stored(feature, values, cut)
        for node, result in zip(cut.outputs, op.results, strict=True):
            self.names[result.name] = _name(value(node))

    def _stored(self, feature: Feature, values: Mapping[str, Literal], cut: Partitions) -> str:
        """Return the name of a feature's value, or of its residual."""
        node = values[feature.node]
        if not feature.base:
            return _name(node)
        return self._sum(f"{feature.node}_residual_", cut.type(feature.node), (node, 1.0), (values[feature.base], -1.0))

    def _reused(self, feature: Feature, call: _Call, values: Mapping[str, Literal], cut: Partitions) -> Literal:
        """Return a feature of an earlier call, corrected, and added to the base of this call."""
        reuse, holder = call.reuses[feature]
        name, type_ = holder.keeps[feature], cut.type(feature.node)
        if reuse.correction is not None:
            graph = self.corrections.of(type_, reuse.correction)
            self.graphs[graph.name] = graph
            self.tables += reuse.correction
            names = (name, *(table.name for table in reuse.correction))
            attrs = tuple(
                (port.name, Ref(name_of_input)) for port, name_of_input in zip(graph.inputs, names, strict=True)
            )
            corrected = self._new(feature.node, type_)
            self.ops.append(Op(graph.name, (), attrs, (), (corrected,)))
            name = corrected.name
        if feature.base:
            name = self._sum(feature.node, type_, (Ref(name), 1.0), (values[feature.base], 1.0))
        return Ref(name)

    def _sum(self, stem: str, type_: Type, *terms: tuple[Literal, float]) -> str:
        total = self._new(stem, type_)
        factors = tuple(Polynomial.constant(factor) for _, factor in terms)
        self.ops.append(Op("linear", tuple(term for term, _ in terms), (), factors, (total,)))
        return total.name

    def _new(self, node: str, type_: Type) -> Value:
        return Value(self.new.new(f"{node}_"), type_)


class _Corrections:
    """Build the graphs that correct features, one for each pair of shapes."""

    def __init__(self) -> None:
        self.graphs: dict[tuple[Type, ...], Graph] = {}

    def of(self, type_: Type, correction: tuple[Table, Table]) -> Graph:
        """Return the graph for a feature and its tables."""
        types = (type_, *(table.type for table in correction))
        if types not in self.graphs:
            ports = tuple(
                Value(name, type_of_port) for name, type_of_port in zip(("kept", "factor", "term"), types, strict=True)
            )
            name = f"corrected_{len(self.graphs) + 1}"
            body = export(name, _Correction(), example_inputs(ports))
            self.graphs[types] = Graph(name, ports, (Value("corrected", type_),), body)
        return self.graphs[types]


class _Correction(nn.Module):
    def forward(self, feature: torch.Tensor, factor: torch.Tensor, term: torch.Tensor) -> tuple[torch.Tensor]:
        return (factor * feature + term,)


def _name(literal: Literal) -> str:
    assert isinstance(literal, Ref)
    return literal.name
