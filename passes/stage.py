"""Compute each value as early as it is known: split a component into the graph of the loop and those before it.

Source: diffc, decision 0005: a value that depends on the timestep alone becomes a row of a table at build, one that
        depends on the request alone is computed once by a graph of its own, one that depends on both once for all
        steps as a batch. Time projections, adaptive layer norms and cross-attention keys leave the loop so.

Before (inside a graph):
    hidden = linear(sample, w0) * linear(silu(linear(timestep, w1) + linear(pooled, w2)), w3)
    out = attention(hidden, linear(text, w4))

After:
    request = linear(text, w4)
    request_step = linear(silu(table + linear(pooled, w2)), w3)
    hidden = linear(sample, w0) * request_step
    out = attention(hidden, request)

where ``request`` and ``request_step`` are graphs of their own: the first is called once, the second once for all steps,
whose values of linear(timestep, w1) are the rows of ``table``. A value of the request whose sizes a text decides is a
port of its own; others of one stage lie side by side in one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from diffc.compiler.analysis.hoisting import Cut, Row
from diffc.compiler.analysis.stages import REQUEST, STEP, Stage, calls, known
from diffc.compiler.graph.body import needed, size
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.graph.lazy_weights import materialized
from diffc.compiler.graph.symbolic import is_open, ports_like
from diffc.compiler.ir.program import Graph, Literal, Names, Op, Program, Ref, Table, Type, Value
from diffc.runtime.program.program import sizes_of_call

aten = torch.ops.aten


def stage(programs: Sequence[Program]) -> tuple[Program, ...]:
    """Split every graph with weights that the programs call; programs that share the graph share its parts."""
    programs = tuple(programs)
    graphs = {graph.name: graph for program in programs for graph in program.graphs if size(graph)}
    for graph in graphs.values():
        cut = Cut.of(graph, programs)
        if any(cut.hoisted.values()):
            programs = _Split(cut, programs).programs()
    return programs


@dataclass(frozen=True)
class _Packed:
    """Hold values of one stage and element type side by side in one tensor, [1 or steps, elements].

    A value of open sizes stands alone, as a tensor of its ``open_type``.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    open_type: Type | None = None

    @staticmethod
    def of(name: str, nodes: Sequence[fx.Node], cut: Cut) -> list[_Packed]:
        """Group values by their element type; the first group has the plain name."""
        by_type: dict[str, list[fx.Node]] = {}
        for node in nodes:
            if not is_open(node.meta["val"]):
                by_type.setdefault(type_of(node.meta["val"]).dtype, []).append(node)
        packs = [_Packed(f"{name}_{dtype}" if at else name, (*of,)) for at, (dtype, of) in enumerate(by_type.items())]
        alone = [node for node in nodes if is_open(node.meta["val"])]
        return [*packs, *(_Packed(f"{name}_{at}", (node,), cut.open_type(node)) for at, node in enumerate(alone))]

    def type(self, rows: int = 1) -> Type:
        """Describe the tensor."""
        return self.open_type or Type(type_of(self.nodes[0].meta["val"]).dtype, (rows, sum(self.sizes)))

    @property
    def sizes(self) -> list[int]:
        """Count the elements of each value."""
        return [node.meta["val"].numel() for node in self.nodes]

    def pack(self, graph: fx.Graph, env: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """Lay values of a graph, by the nodes that they stand for, side by side in one row."""
        if self.open_type:
            return env[self.nodes[0]]
        row = [graph.call_function(aten.reshape.default, (env[node], [1, -1])) for node in self.nodes]
        return graph.call_function(aten.cat.default, (row, 1))

    def unpack(self, graph: fx.Graph, packed: fx.Node) -> dict[fx.Node, fx.Node]:
        """Take the values apart again in a graph."""
        if self.open_type:
            return {self.nodes[0]: packed}
        parts = graph.call_function(aten.split_with_sizes.default, (packed, self.sizes, 1))
        return {
            node: graph.call_function(
                aten.reshape.default, (graph.call_function(operator.getitem, (parts, at)), list(node.meta["val"].shape))
            )
            for at, node in enumerate(self.nodes)
        }


class _Split:
    """Build the graphs of a cut, and rewrite the programs to call them."""

    def __init__(self, cut: Cut, programs: Sequence[Program]) -> None:
        self.cut, self.originals = cut, programs
        self.literals: dict[str, Literal] = {
            p: v for each in programs for op in calls(each, cut.graph) for p, v in op.attrs
        }
        self.tables = {table.name: table.data for program in programs for table in program.tables}
        self.packs = {
            stage: _Packed.of(self._free(stage), cut.hoisted[stage], cut)
            for stage in ("step", "request", "request_step")
        }
        self.main = self._main()
        self.request = self._request() if self.packs["request"] else None
        self.request_step: dict[tuple[Row, ...], Graph] = {}

    def _free(self, name: str) -> str:
        return f"{name}_" if any(port.name == name for port in self.cut.graph.inputs) else name

    def programs(self) -> tuple[Program, ...]:
        """Rewrite the calls."""
        return tuple(self._rewritten(program) for program in self.originals)

    # Graphs

    def _main(self) -> Graph:
        """Read the hoisted values as inputs and constants, and compute the rest."""
        cut, graph = self.cut, fx.Graph()
        body, hoisted = cut.body, [node for nodes in cut.hoisted.values() for node in nodes]
        ports = cut.ports_of([body.graph.output_node()], hoisted)
        packs = [pack for each in self.packs.values() for pack in each]
        inputs = (*ports, *(Value(pack.name, pack.type()) for pack in packs))
        placed = {port.name: graph.placeholder(port.name) for port in inputs}
        env = {cut.node(port): placed[port.name] for port in ports}
        for at, value in enumerate(self._known(cut.hoisted["build"], [()])[0]):
            body.register_buffer(f"known_{at}", value)
            env[cut.hoisted["build"][at]] = graph.get_attr(f"known_{at}")
        for pack in packs:
            env |= pack.unpack(graph, placed[pack.name])
        _copy(body.graph, graph, [body.graph.output_node()], env)
        return self._graph(cut.graph.name, fx.GraphModule(body, graph), inputs, cut.graph.outputs)

    def _request(self) -> Graph:
        """Compute the values that depend on the request."""
        cut, graph, packs = self.cut, fx.Graph(), self.packs["request"]
        ports = cut.ports_of(cut.hoisted["request"])
        env = {cut.node(port): graph.placeholder(port.name) for port in ports}
        _copy(cut.body.graph, graph, cut.hoisted["request"], env)
        graph.output(tuple(pack.pack(graph, env) for pack in packs))
        outputs = [Value(f"{pack.name}_out", pack.type()) for pack in packs]
        return self._graph(f"{cut.graph.name}_request", fx.GraphModule(cut.body, graph), ports, outputs, "request")

    def _over_steps(self, rows: tuple[Row, ...]) -> Graph:
        """Compute the values that depend on request and step, for several steps as one batch."""
        if rows not in self.request_step:
            cut, packs, nodes = self.cut, self.packs["request_step"], self.cut.hoisted["request_step"]
            timed, timeless = _boundary(cut, nodes, STEP), _boundary(cut, nodes, REQUEST)
            ports = cut.ports_of(nodes, timed)
            once, graph = fx.Graph(), fx.Graph()
            env = {cut.node(port): once.placeholder(port.name) for port in ports}
            _copy(cut.body.graph, once, timeless, env)
            once.output(tuple(env[node] for node in timeless))
            env = {node: graph.placeholder(f"timed_{at}") for at, node in enumerate(timed)}
            env |= {node: graph.placeholder(f"timeless_{at}") for at, node in enumerate(timeless)}
            _copy(cut.body.graph, graph, nodes, env)
            graph.output(tuple(env[node] for pack in packs for node in pack.nodes))
            values = [torch.stack(each) for each in zip(*self._known(timed, rows), strict=True)]
            parts = fx.GraphModule(cut.body, once), fx.GraphModule(cut.body, graph)
            module = _OverSteps(*parts, values, [len(pack.nodes) for pack in packs])
            outputs = [Value(f"{pack.name}_out", pack.type(len(rows))) for pack in packs]
            name = f"{cut.graph.name}_request_step" + (f"_{len(self.request_step) + 1}" if self.request_step else "")
            self.request_step[rows] = self._graph(name, module, ports, outputs, "request_step")
        return self.request_step[rows]

    def _graph(
        self, name: str, module: nn.Module, inputs: Sequence[Value], outputs: Sequence[Value], stage: str = ""
    ) -> Graph:
        hoisted = {pack.name: pack.nodes[0].meta["val"] for pack in self.packs["request"] if pack.open_type}
        example = [
            hoisted[port.name] if port.name in hoisted else ports_like([port], self.cut.graph)[0] for port in inputs
        ]
        return Graph(
            name, tuple(inputs), tuple(outputs), export(name, module, example), self.cut.graph.component, stage
        )

    # Values

    def _known(self, nodes: Sequence[fx.Node], rows: Iterable[Row]) -> list[list[torch.Tensor]]:
        """Evaluate nodes that depend only on literals known at build, once for each row."""
        cut, graph = self.cut, fx.Graph()
        ports = cut.ports_of(nodes)
        env = {cut.node(port): graph.placeholder(port.name) for port in ports}
        _copy(cut.body.graph, graph, nodes, env)
        graph.output(tuple(env[node] for node in nodes))
        region = fx.GraphModule(cut.body, graph)
        with materialized(region), torch.no_grad():
            arguments = [[self._tensor((self.literals | dict(row))[p.name], p) for p in ports] for row in rows]
            return [[value.detach().clone() for value in region(*tensors)] for tensors in arguments]

    def _tensor(self, literal: Literal, port: Value) -> torch.Tensor:
        data = self.tables[literal.name] if isinstance(literal, Ref) else literal
        return torch.as_tensor(data, dtype=getattr(torch, port.type.dtype)).reshape(port.type.fixed)

    def _table(self, pack: _Packed, rows: Sequence[Row]) -> Table:
        each = [torch.cat([value.reshape(-1) for value in values]) for values in self._known(pack.nodes, rows)]
        return Table.of(torch.stack(each).numpy())

    # Calls

    def _rewritten(self, program: Program) -> Program:
        cut, ops, tables, types = self.cut, list[Op](), list(program.tables), program.types()
        names = Names(types)
        rows: dict[Row, dict[Row, None]] = {}
        for op in calls(program, cut.graph):
            rows.setdefault(self._request_row(op), {})[known(op, cut.ports)] = None
        every = tuple(dict.fromkeys(row for each in rows.values() for row in each))
        preludes: dict[Row, dict[Row, dict[str, Literal]]] = {}
        timed: dict[Row, dict[str, Literal]] = {}
        for op in program.ops:
            if op.operator != cut.graph.name:
                ops.append(op)
                continue
            if not timed:
                timed = {row: {} for row in every}
                for pack in self.packs["step"]:
                    tables.append(self._table(pack, every))
                    self._taken_apart(pack, tables[-1].name, timed, names, ops)
            request_row, row = self._request_row(op), known(op, cut.ports)
            if request_row not in preludes:
                preludes[request_row] = self._prelude(op, tuple(rows[request_row]), types, names, ops)
            arguments = dict(op.attrs) | timed[row] | preludes[request_row][row]
            ops.append(replace(op, attrs=tuple((port.name, arguments[port.name]) for port in self.main.inputs)))
        graphs = [self.main if graph.name == cut.graph.name else graph for graph in program.graphs]
        early = [self.request, *self.request_step.values()]
        called = {op.operator for op in ops}
        graphs += [graph for graph in early if graph and graph.name in called]
        tables = list({each.name: each for each in tables}.values())
        return replace(program, ops=tuple(ops), graphs=tuple(graphs), tables=tuple(tables)).live()

    def _request_row(self, op: Op) -> Row:
        """Return the arguments of a call that are known with the request."""
        return tuple((port, value) for port, value in op.attrs if self.cut.ports[port] == REQUEST)

    def _prelude(
        self, op: Op, rows: tuple[Row, ...], types: Mapping[str, Type], names: Names, ops: list[Op]
    ) -> dict[Row, dict[str, Literal]]:
        """Call the graphs that run before the loop, and return each row's arguments."""
        each: dict[Row, dict[str, Literal]] = {row: {} for row in rows}
        if self.request:
            for pack, value in zip(self.packs["request"], _call(self.request, op, types, names, ops), strict=True):
                for row in rows:
                    each[row][pack.name] = Ref(value.name)
        if self.packs["request_step"]:
            results = _call(self._over_steps(rows), op, types, names, ops)
            for pack, batch in zip(self.packs["request_step"], results, strict=True):
                self._taken_apart(pack, batch.name, each, names, ops)
        return each

    def _taken_apart(
        self, pack: _Packed, batch: str, each: dict[Row, dict[str, Literal]], names: Names, ops: list[Op]
    ) -> None:
        parts = tuple(Value(names.new(f"{self.cut.graph.name}_{pack.name}_"), pack.type()) for _ in each)
        ops.append(Op("split", (Ref(batch),), (("axis", 0),), (), parts))
        for row, part in zip(each, parts, strict=True):
            each[row][pack.name] = Ref(part.name)


class _OverSteps(nn.Module):
    """Compute for a batch of steps at once, and lay the results of each step side by side.

    What depends on no step is computed before, ``once``: ``torch.vmap`` fixes open sizes of what it has no batch of.
    """

    def __init__(
        self, once: fx.GraphModule, region: fx.GraphModule, timed: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> None:
        super().__init__()
        self.once, self.region, self.counts, self.steps = once, region, list(counts), len(timed[0])
        for at, value in enumerate(timed):
            self.register_buffer(f"timed_{at}", value)

    def forward(self, *ports: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return one tensor [steps, elements] for each packed table."""
        timed = [value for _, value in self.named_buffers(recurse=False)]
        timeless = self.once(*ports)
        in_dims = (0,) * len(timed) + (None,) * len(timeless)
        outputs = iter(torch.vmap(self.region, in_dims=in_dims)(*timed, *timeless))
        packs = ([next(outputs).reshape(self.steps, -1) for _ in range(count)] for count in self.counts)
        return tuple(torch.cat(pack, 1) for pack in packs)


def _call(graph: Graph, op: Op, types: Mapping[str, Type], names: Names, ops: list[Op]) -> tuple[Value, ...]:
    """Call a graph with the arguments of another call on the ports of the same names."""
    attrs = tuple((port.name, op.attr(port.name)) for port in graph.inputs)
    call = Op(graph.name, (), attrs, (), ())
    sizes = sizes_of_call(call, graph, {name: type_.shape for name, type_ in types.items()})
    results = tuple(Value(names.new(graph.name), port.type.replaced(sizes)) for port in graph.outputs)
    ops.append(replace(call, results=results))
    return results


def _copy(source: fx.Graph, target: fx.Graph, nodes: Sequence[fx.Node], env: dict[fx.Node, fx.Node]) -> None:
    """Copy the nodes that some nodes are computed from, unless the environment has them."""
    sources = needed(source, nodes, tuple(env))
    for node in source.nodes:
        if node in sources and node not in env:
            env[node] = target.node_copy(node, env.__getitem__)


def _boundary(cut: Cut, nodes: Sequence[fx.Node], stage: Stage) -> list[fx.Node]:
    """List the nodes of one stage that are read by nodes of a later one, among those from which some are computed."""
    late = [node for node in needed(cut.body.graph, nodes, ()) if cut.stages[node] > stage]
    boundary = {source for node in late for source in node.all_input_nodes if cut.stages[source] == stage}
    return [node for node in cut.body.graph.nodes if node in boundary]
