"""Let calls of the denoiser take over what earlier calls computed: its graph becomes pieces, called where needed.

Before:
    y0 = unet(sample=x0)
    y1 = unet(sample=x1)

After, where the second call reuses what the middle of the graph made in the first:
    h0, s0 = unet_piece_1(sample=x0)
    d0 = unet_piece_2(h=h0)
    y0 = unet_piece_3(s=s0, d=d0)
    h1, s1 = unet_piece_1(sample=x1)
    y1 = unet_piece_3(s=s1, d=d0)

What is kept is a value of the program like any other, and each weight is in one piece alone: see decision 0009.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from diffc.compiler.analysis.features import Feature, Kind
from diffc.compiler.analysis.stages import denoisers, stages_of_values
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.partition import Pieces
from diffc.compiler.graph.body import example_inputs
from diffc.compiler.graph.export import export
from diffc.compiler.ir.program import Graph, Literal, Names, Op, Polynomial, Program, Ref, Table, Type, Value
from diffc.compiler.text_table import text_table

__all__ = ["Feature", "Reuse", "Schedule", "Scheduler", "cached", "check_interval", "evaluations", "since"]


@dataclass(frozen=True)
class Reuse:
    """Let an evaluation take over a feature from the evaluation ``source``, which computes it.

    With a ``correction`` (a, b) it takes ``a * kept + b``; the tables broadcast to the feature's shape.
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
"""Give the schedule of a program with so many evaluations, for one graph of the denoiser that it calls."""


def cached(programs: Sequence[Program], schedule: Scheduler) -> tuple[Program, ...]:
    """Cut the graphs of the denoiser so that every program can follow its schedule; programs share the pieces.

    A graph of which no schedule reuses anything stays whole. Raises `PassError` for a feature that cannot be kept,
    and where there is no denoiser.
    """
    graphs = denoisers(programs)
    if not graphs:
        raise PassError("no program calls a denoiser", where=programs[0].name, fix="leave the cache out")
    calls = [_calls(program, graphs, schedule) for program in programs]
    cuts = dict[str, Pieces]()
    for graph in graphs:
        kinds = {call.kind for each in calls for call in each if call.op.operator == graph.name}
        if any(kinds):
            cuts[graph.name] = Pieces(graph, programs, kinds)
    correct = _Corrections()
    return tuple(_Writing(program, mine, cuts, correct).run() for program, mine in zip(programs, calls, strict=True))


def evaluations(program: Program, graphs: Iterable[str]) -> dict[int, int]:
    """Map the places of a denoiser's calls to the evaluations they belong to: how many calls they had to wait for.

    So both branches of guidance are one evaluation, and both stages of a solver of second order are two.
    """
    names, depth, found = set(graphs), dict[str, int](), dict[int, int]()
    for at, op in enumerate(program.ops):
        before = max((depth.get(name, 0) for name in op.reads()), default=0)
        if op.operator in names:
            found[at] = before
        depth |= {value.name: before + (op.operator in names) for value in op.results}
    return found


def check_interval(system: str, interval: int, program: Program, count: int) -> None:
    """Raise `PassError` where an interval is longer than the evaluations of a program are many."""
    if interval > count:
        what = f"{system}: the interval is {interval}, and there are {count} evaluations of the denoiser"
        raise PassError(what, where=program.name, fix=f"give an interval of at most {count}, or more steps")


def since(refresh: Iterable[int], count: int) -> list[int]:
    """Name for each of ``count`` evaluations the last that refreshes; the first of all must."""
    steps = sorted(refresh)
    return [max(step for step in steps if step <= at) for at in range(count)]


@dataclass(eq=False)
class _Call:
    """Hold a call of the denoiser: what it reuses, and of which call; and what it keeps for others."""

    op: Op
    evaluation: int
    reuses: dict[Feature, tuple[Reuse, _Call]] = field(default_factory=dict)
    keeps: dict[Feature, str] = field(default_factory=dict)  # and the values that the features are kept in

    @property
    def kind(self) -> Kind:
        return frozenset(self.reuses)


def _calls(program: Program, graphs: Sequence[Graph], schedule: Scheduler) -> list[_Call]:
    """List a program's calls in order, and find who computes what they reuse: a call of the same lane.

    Where a lane has no call at the source, as where guidance begins later, the first that wants a feature computes it.
    """
    lanes = _lanes(program, {graph.name for graph in graphs})
    count = 1 + max((call.evaluation for lane in lanes for call in lane), default=-1)
    by_name = {graph.name: graph for graph in graphs}
    asked = {name: schedule(program, by_name[name], count) for name in {lane[0].op.operator: 0 for lane in lanes}}
    for lane in lanes:
        at = {call.evaluation: call for call in lane}
        for call in lane:
            for reuse in asked[call.op.operator][call.evaluation]:
                holder = at.setdefault(reuse.source, call)
                if holder is not call:
                    assert reuse.feature not in holder.reuses, f"{reuse.feature} is not computed at {reuse.source}"
                    call.reuses[reuse.feature] = reuse, holder
                    holder.keeps[reuse.feature] = ""
    return [call for lane in lanes for call in lane]


def _lanes(program: Program, graphs: Iterable[str]) -> list[list[_Call]]:
    """Share the calls out by their graph, and by the values of the request that they are given."""
    stages, made = stages_of_values(program), {value.name: op for op in program.ops for value in op.results}

    def whole(name: str) -> str:
        """Name what a value was split from: each step has its part."""
        while name in made and made[name].operator == "split":
            name = next(made[name].reads())
        return name

    lanes = dict[tuple[str, frozenset[str], int], list[_Call]]()
    for at, evaluation in evaluations(program, graphs).items():
        op = program.ops[at]
        given = frozenset(whole(name) for name in op.reads() if stages[name] == {"request"})
        twins = (lanes.setdefault((op.operator, given, twin), []) for twin in range(len(program.ops)))
        next(lane for lane in twins if not lane or lane[-1].evaluation != evaluation).append(_Call(op, evaluation))
    return list(lanes.values())


class _Writing:
    """Write one program anew."""

    def __init__(
        self, program: Program, calls: Iterable[_Call], cuts: Mapping[str, Pieces], corrections: _Corrections
    ) -> None:
        self.program, self.cuts, self.corrections = program, cuts, corrections
        self.calls = {call.op.results: call for call in calls if call.op.operator in cuts}
        self.names, self.new = dict[str, str](), Names(program.types())
        self.ops, self.graphs, self.tables = list[Op](), dict[str, Graph](), list(program.tables)

    def run(self) -> Program:
        for op in self.program.ops:
            call = self.calls.get(op.results)
            if call is None:
                self.ops.append(op.renamed(self.names))
            else:
                self._call(call, op.renamed(self.names), self.cuts[op.operator])
        outputs = tuple(self.names.get(name, name) for name in self.program.outputs)
        graphs = {graph.name: graph for graph in self.program.graphs} | self.graphs
        tables = {table.name: table for table in self.tables}
        made = replace(self.program, graphs=tuple(graphs.values()), tables=tuple(tables.values()), ops=tuple(self.ops))
        return replace(made, outputs=outputs).live()

    def _call(self, call: _Call, op: Op, cut: Pieces) -> None:
        """Call the pieces that a call needs, in the order in which they read from each other."""
        values: dict[str, Literal] = {node.name: op.attr(port.name) for node, port in cut.ports.items()}
        given = {feature.node: feature for feature in call.reuses}
        results = {node.name: value for node, value in zip(cut.outputs, op.results, strict=True)}

        def value(node: fx.Node) -> Literal:
            if node.name not in values:
                values[node.name] = self._reused(given[node.name], call, values, cut)
            return values[node.name]

        for piece in cut.pieces:
            if call.kind not in piece.kinds:
                continue
            attrs = tuple((port.name, value(node)) for port, node in zip(piece.graph.inputs, piece.reads, strict=True))
            made = tuple(results.get(n.name) or self._new(n.name, cut.type(n.name)) for n in piece.gives)
            values |= {node.name: Ref(each.name) for node, each in zip(piece.gives, made, strict=True)}
            self.ops.append(Op(piece.graph.name, (), attrs, (), made))
            self.graphs[piece.graph.name] = piece.graph
        for feature in call.keeps:
            call.keeps[feature] = self._kept(feature, values, cut)
        for node, result in zip(cut.outputs, op.results, strict=True):
            self.names[result.name] = _name(value(node))

    def _kept(self, feature: Feature, values: Mapping[str, Literal], cut: Pieces) -> str:
        """Name what is kept of a feature."""
        node = values[feature.node]
        if not feature.base:
            return _name(node)
        return self._sum(f"{feature.node}_residual_", cut.type(feature.node), (node, 1.0), (values[feature.base], -1.0))

    def _reused(self, feature: Feature, call: _Call, values: Mapping[str, Literal], cut: Pieces) -> Literal:
        """Give a feature of an earlier call, corrected, and on the base of this one."""
        reuse, holder = call.reuses[feature]
        name, type_ = holder.keeps[feature], cut.type(feature.node)
        if reuse.correction is not None:
            graph = self.corrections.of(type_, reuse.correction)
            self.graphs[graph.name] = graph
            self.tables += reuse.correction
            given = (name, *(table.name for table in reuse.correction))
            attrs = tuple((port.name, Ref(each)) for port, each in zip(graph.inputs, given, strict=True))
            made = self._new(feature.node, type_)
            self.ops.append(Op(graph.name, (), attrs, (), (made,)))
            name = made.name
        if feature.base:
            name = self._sum(feature.node, type_, (Ref(name), 1.0), (values[feature.base], 1.0))
        return Ref(name)

    def _sum(self, stem: str, type_: Type, *terms: tuple[Literal, float]) -> str:
        made = self._new(stem, type_)
        factors = tuple(Polynomial.constant(factor) for _, factor in terms)
        self.ops.append(Op("linear", tuple(term for term, _ in terms), (), factors, (made,)))
        return made.name

    def _new(self, node: str, type_: Type) -> Value:
        return Value(self.new.new(f"{node}_"), type_)


class _Corrections:
    """Make the graphs that correct features, one for each pair of shapes."""

    def __init__(self) -> None:
        self.made: dict[tuple[Type, ...], Graph] = {}

    def of(self, type_: Type, correction: tuple[Table, Table]) -> Graph:
        """Give the graph for a feature and its tables."""
        types = (type_, *(table.type for table in correction))
        if types not in self.made:
            ports = tuple(Value(name, each) for name, each in zip(("kept", "factor", "term"), types, strict=True))
            name = f"corrected_{len(self.made) + 1}"
            body = export(name, _Correction(), example_inputs(ports))
            self.made[types] = Graph(name, ports, (Value("corrected", type_),), body)
        return self.made[types]


class _Correction(nn.Module):
    def forward(self, kept: torch.Tensor, factor: torch.Tensor, term: torch.Tensor) -> tuple[torch.Tensor]:
        return (factor * kept + term,)


def _name(literal: Literal) -> str:
    assert isinstance(literal, Ref)
    return literal.name
