"""Write a plan of quantization into the graphs and programs of a bundle.

Before (inside a graph):
    y = linear(x, w, bias)

After, static:
    y = linear(fake_quantize(x, scale), dequantize(quantized, scales), bias)

After, with scales s that are known per step, or computed from x (per token, or for all of it):
    y = linear(fake_quantize(x / s, 1), dequantize(quantized, scales)) * s + bias

After, with smoothing m and a low-rank branch:
    y = linear(fake_quantize(x * m), dequantize(quantized)) + linear(linear(x * m, down), up) + bias
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from diffc.compiler.errors import PassError, RecipeError
from diffc.compiler.graph.body import body_of, example_inputs
from diffc.compiler.graph.export import LAYER, export
from diffc.compiler.graph.lazy_weights import read
from diffc.compiler.ir.program import Graph, Op, Program, Ref, Table, Type, Value
from diffc.compiler.quantization.formats import FORMATS, Scheme, Spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.ops import dynamic_scale, scale_and_zero
from diffc.compiler.quantization.plan import Plan

aten, ops = torch.ops.aten, torch.ops.diffc


def applied(plan: Plan) -> tuple[Program, ...]:
    """Write the plan into the programs. Calls of graphs with step-indexed scales read one more row of a table.

    Raises `PassError` that names a layer which is smoothed, or has a low-rank branch, and whose weight is not rounded.
    """
    for layer in plan.layers:
        _check_rounded(layer)
    sites = {(site.graph, site.node): layer for layer in plan.layers for site in layer.sites}
    quantized = {name: _Writing(graph, sites).graph() for name, graph in plan.graphs.items()}
    return tuple(_with_scales(program, quantized) for program in plan.programs)


def _check_rounded(layer: Layer) -> None:
    """Refuse a weight that would be written as the checkpoint has it, without its smoothing and beside its branch."""
    decided = {"smoothed": layer.smoothing is not None, "beside a low-rank branch": layer.branch is not None}
    reasons = [word for word, is_decided in decided.items() if is_decided]
    if layer.rounded is None and layer.scheme != Scheme() and reasons:
        what = f"the weight of {layer.name} is {', '.join(reasons)}, and not rounded"
        raise PassError(
            what, where=str(layer.scheme), fix="round it after its other techniques, as round_to_nearest does"
        )


SCALES = "scales"
"""The port that takes the scales of a step."""


class _Writing:
    """Copy one graph, and write its layers as planned."""

    def __init__(self, graph: Graph, sites: Mapping[tuple[str, str], Layer]) -> None:
        self.source, self.body = graph, body_of(graph)
        self.layers = {name: layer for (of, name), layer in sites.items() if of == graph.name}
        self.copy = fx.Graph()
        self.module = self.body
        self.by_step: list[torch.Tensor] = []  # scales of each layer that has one for each step, [inputs, steps]
        self.scales: fx.Node | None = None
        self.layer = ""
        self.count = 0

    def graph(self) -> tuple[Graph, torch.Tensor | None]:
        """Return the graph, and its table of scales [steps, scales]."""
        if not any(layer.scheme != Scheme() for layer in self.layers.values()):
            return self.source, None
        rows = [scale for layer in self.layers.values() if (scale := _step_scales(layer)) is not None]
        table = torch.cat(rows).T.contiguous() if rows else None
        ports = [node for node in self.body.graph.nodes if node.op == "placeholder"]
        env = {node: self.copy.node_copy(node) for node in ports}
        inputs = list(self.source.inputs)
        if table is not None:
            inputs.append(Value(SCALES, Type("float32", (1, table.shape[1]))))
            self.scales = self.copy.placeholder(SCALES)
        for node in self.body.graph.nodes:
            layer = self.layers.get(node.name)
            if layer is not None and layer.scheme != Scheme():
                env[node] = self._written(layer, node, env)
            elif node not in env:
                env[node] = self.copy.node_copy(node, env.__getitem__)
        self.copy.eliminate_dead_code()
        module = fx.GraphModule(self.body, self.copy)
        body = export(self.source.name, module, example_inputs(inputs))
        return replace(self.source, inputs=tuple(inputs), body=body), table

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return self.copy.call_function(target, args)

    def _constant(self, name: str, tensor: torch.Tensor) -> fx.Node:
        self.count += 1
        attribute = f"{name}_{self.count}_of_{self.layer.replace('.', '__')}"
        self.module.register_buffer(attribute, tensor.contiguous())
        node = self.copy.get_attr(attribute)
        node.meta[LAYER] = self.layer
        return node

    def _written(self, layer: Layer, node: Any, env: Mapping[fx.Node, fx.Node]) -> fx.Node:
        args: Any = fx.map_arg(node.args, env.__getitem__)
        self.layer = layer.name.removeprefix(f"{layer.component}.")
        if layer.kind == "embedding":
            return self._embedding(layer, args)
        if layer.kind == "attention":
            return self._attention(layer, node, args, dict(fx.map_arg(node.kwargs, env.__getitem__)))
        x, bias = args[0], self._bias(layer, args[2] if len(args) > 2 else None)
        if layer.smoothing is not None:
            shape = [-1, *[1] * (node.args[0].meta["val"].dim() - 2)] if layer.axis == 1 else [-1]
            x = self._call(aten.mul.Tensor, x, self._half("smoothing", layer.smoothing.reshape(shape)))
        quantized, factor = self._activation(layer, x, node.args[0].meta["val"].dim())
        weight = args[1] if layer.rounded is None else self._weight(layer)
        # ONNX Runtime computes a product of integers only where the bias is added by itself, in the product's rank.
        delayed = factor is not None or layer.branch is not None or layer.kind == "linear"
        y = self.copy.call_function(node.target, (quantized, weight, None if delayed else bias, *args[3:]))
        y = y if factor is None else self._call(aten.mul.Tensor, y, factor)
        if layer.branch is not None:
            y = self._call(aten.add.Tensor, y, self._branch(layer, x, node, args[3:]))
        if delayed and bias is not None:
            shape = [1] * node.meta["val"].dim()
            shape[layer.axis] = -1
            y = self._call(aten.add.Tensor, y, self._call(aten.reshape.default, bias, shape))
        return self._output(layer, y)

    def _bias(self, layer: Layer, bias: fx.Node | None) -> fx.Node | None:
        """Return a layer's bias plus its shift, as one constant where the bias is a constant."""
        if layer.shift is None:
            return bias
        if bias is None:
            return self._constant("shift", layer.shift)
        if bias.op == "get_attr":
            own: torch.Tensor = operator.attrgetter(str(bias.target))(self.module)
            return self._constant("bias", read(own).detach() + layer.shift)
        return self._call(aten.add.Tensor, bias, self._constant("shift", layer.shift))

    def _half(self, name: str, tensor: torch.Tensor) -> fx.Node:
        return self._call(aten.to.dtype, self._constant(name, tensor.half()), torch.float32)

    def _attention(self, layer: Layer, node: Any, args: Any, options: dict[str, Any]) -> fx.Node:
        """Quantize the inputs of attention; where its probabilities are quantized too, it becomes two products."""
        inputs = [self._static(layer, x, at) for at, x in enumerate(args[:3])]
        spec = layer.scheme.probabilities
        if spec is None:
            return self.copy.call_function(node.target, (*inputs, *args[3:]), options)
        arguments = [*args[3:], *(None, 0.0, False)[len(args) - 3 :]]
        mask, causal, queries = arguments[0], arguments[2], node.args[0].meta["val"]
        grouped = queries.shape[-3] != node.args[1].meta["val"].shape[-3]
        if causal or grouped or (mask is not None and node.args[3].meta["val"].dtype == torch.bool):
            fix = "leave its probabilities in float"
            raise RecipeError("attention that hides or groups cannot be taken apart", where=layer.name, fix=fix)
        scores = self._call(aten.matmul.default, inputs[0], self._call(aten.transpose.int, inputs[1], -2, -1))
        scores = self._call(aten.mul.Tensor, scores, options.get("scale") or queries.shape[-1] ** -0.5)
        scores = scores if mask is None else self._call(aten.add.Tensor, scores, mask)
        probabilities = self._call(aten.softmax.int, scores, -1)
        probabilities = self._fixed(probabilities, spec, torch.zeros(1), torch.ones(1))
        return self._call(aten.matmul.default, probabilities, inputs[2])

    def _branch(self, layer: Layer, x: fx.Node, node: Any, options: Any) -> fx.Node:
        """Compute the low-rank branch: the layer's own operator with few rows, then a matrix on the channels."""
        assert layer.branch is not None and layer.weight is not None
        down, up = layer.branch
        kernel = [1] * (layer.weight.dim() - 2)
        inner = self._half("down", down.reshape(len(down), *layer.weight.shape[1:]))
        outer = self._half("up", up.reshape(*up.shape, *kernel))
        return self._call(node.target, self._call(node.target, x, inner, None, *options), outer)

    def _embedding(self, layer: Layer, args: Any) -> fx.Node:
        """Look up quantized values and scales, and multiply: there is no float copy of the table."""
        rounded, spec = layer.rounded, layer.scheme.weight
        assert rounded is not None and spec is not None and not spec.group
        quantized = self._call(aten.embedding.default, self._constant("codes", rounded.quantized), args[1])
        scales = self._call(aten.embedding.default, self._constant("scale", rounded.scale.reshape(-1, 1)), args[1])
        return self._call(aten.mul.Tensor, self._call(aten.to.dtype, quantized, torch.float32), scales)

    def _weight(self, layer: Layer) -> fx.Node:
        rounded, spec = layer.rounded, layer.scheme.weight
        assert rounded is not None and spec is not None
        quantized = self._constant("codes", rounded.quantized)
        zero = None if rounded.zero is None else self._constant("zero", spec.format.encode(rounded.zero))
        if rounded.outer is None:
            dtype = torch.float16 if spec.scale == "float16" else torch.float32
            scale = self._constant("scale", rounded.scale.to(dtype))
        else:
            form = FORMATS[spec.scale]
            stored = self._constant("scale", form.encode(rounded.scale))
            outer = self._constant("outer", rounded.outer.half() if form.is_integer else rounded.outer)
            scale = self._call(ops.dequantize.default, stored, outer, None, 0, form.name, torch.float32)
        return self._call(ops.dequantize.default, quantized, scale, zero, spec.group, spec.format.name, torch.float32)

    def _activation(self, layer: Layer, x: fx.Node, rank: int) -> tuple[fx.Node, fx.Node | None]:
        """Quantize an input; return it with the scale that the output is to be multiplied by, if that is delayed."""
        spec = layer.scheme.activation
        if spec is None:
            return x, None
        if spec.per == "group":
            return self._call(ops.fake_quantize_groups.default, x, str(spec)), None
        if spec.when == "static":
            return self._static(layer, x, 0), None
        if spec.when == "step":
            scales = _step_scales(layer)
            if scales is None:
                return x, None
            assert self.scales is not None
            at = sum(len(scale) for scale in self.by_step)
            self.by_step.append(scales)
            factor = self._call(aten.slice.Tensor, self.scales, 1, at, at + 1)
            factor = self._call(aten.reshape.default, factor, [1])
        else:
            factor = dynamic_scale(x, spec, rank, self._call)
        scaled = self._call(aten.div.Tensor, x, factor)
        one = self._constant("one", torch.ones(1))
        return self._call(ops.fake_quantize.default, scaled, one, None, spec.format.name), factor

    def _static(self, layer: Layer, x: fx.Node, at: int) -> fx.Node:
        spec = layer.scheme.of_input(at)
        if spec is None or layer.low is None or layer.high is None:
            return x
        return self._fixed(x, spec, layer.low[at], layer.high[at])

    def _output(self, layer: Layer, y: fx.Node) -> fx.Node:
        if layer.scheme.output is None or layer.bounds is None:
            return y
        low, high = (torch.tensor([bound]) for bound in layer.bounds)
        return self._fixed(y, layer.scheme.output, low, high)

    def _fixed(self, x: fx.Node, spec: Spec, low: torch.Tensor, high: torch.Tensor) -> fx.Node:
        scale, zero = scale_and_zero(spec, low, high)
        offset = None if zero is None else self._constant("zero", spec.format.encode(zero))
        return self._call(
            ops.fake_quantize.default, x, self._constant("scale", scale.float()), offset, spec.format.name
        )


def _step_scales(layer: Layer) -> torch.Tensor | None:
    """Return the step-indexed scales of a layer, [inputs, steps], or None."""
    spec = layer.scheme.activation
    if spec is None or spec.when != "step" or layer.low is None or layer.high is None:
        return None
    return scale_and_zero(spec, layer.low, layer.high)[0].float()


def _with_scales(program: Program, quantized: Mapping[str, tuple[Graph, torch.Tensor | None]]) -> Program:
    """Replace the graphs of a program by the quantized ones, and pass each call its row of scales."""
    graphs = tuple(quantized[graph.name][0] if graph.name in quantized else graph for graph in program.graphs)
    ops_, tables = list[Op](), {table.name: table for table in program.tables}  # equal tables have one name
    rows = {name: _rows(program, name, table) for name, (_, table) in quantized.items() if table is not None}
    for op, refs, table in rows.values():
        if refs:
            tables[table.name] = table
            ops_.append(op)
    used = dict.fromkeys(rows, 0)
    for op in program.ops:
        if op.operator in rows:
            refs = rows[op.operator][1]
            op = replace(op, attrs=(*op.attrs, (SCALES, refs[used[op.operator]])))
            used[op.operator] += 1
        ops_.append(op)
    return replace(program, graphs=graphs, tables=tuple(tables.values()), ops=tuple(ops_))


def _rows(program: Program, name: str, table: torch.Tensor) -> tuple[Op, list[Ref], Table]:
    """Split a table of scales into one row per call; with another number of steps a call reads the nearest in time."""
    count = sum(op.operator == name for op in program.ops)
    nearest = [round(at * (len(table) - 1) / max(1, count - 1)) for at in range(count)]
    scales = Table.of(table[nearest].numpy())
    names = [f"{name}_scale_{at}" for at in range(count)]
    results = tuple(Value(name_of_row, Type("float32", (1, table.shape[1]))) for name_of_row in names)
    return (
        Op("split", (Ref(scales.name),), (("axis", 0),), (), results),
        [Ref(name_of_row) for name_of_row in names],
        scales,
    )
