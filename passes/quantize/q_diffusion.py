"""Calibrate on strided steps of the trajectory, and quantize each half of a concatenated input by itself.

Paper: Li et al., "Q-Diffusion: Quantizing Diffusion Models", ICCV 2023,
       https://arxiv.org/abs/2302.04304 (time step-aware calibration; shortcut-splitting quantization). A layer that
       reads a concatenation is found by walking from its input, through operators that keep the order of channels.

Before (weights int8:channel):
    x = silu(group_norm(cat(h, skip)))
    y = conv(x, w, bias)

After:
    x = silu(group_norm(cat(h, skip)))
    y = conv(x[:, :c], first, bias) + conv(x[:, c:], second)

The two are layers of their own, with the scheme of the one that they were. Next come calibrate_ranges, and adaround
with ``by="block"``, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from diffc.compiler.errors import PassError
from diffc.compiler.graph.aten import Trait, has
from diffc.compiler.graph.body import body_of, example_inputs
from diffc.compiler.graph.export import LAYER, export
from diffc.compiler.graph.lazy_weights import channels
from diffc.compiler.ir.program import Graph
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan, find_layers

aten = torch.ops.aten

UNSPLIT = "it does not read a concatenation of channels, or is grouped, or its weight stays in float"


def q_diffusion(plan: Plan, *, steps: int = 20) -> Plan:
    """Keep the samples of at most ``steps`` steps, evenly apart, and split the layers that read a concatenation.

    Raises `PassError` for such a layer that has ranges, smoothing, a low-rank branch or a rounded weight already.
    """
    if steps < 1:
        raise PassError(f"q_diffusion: steps is {steps}", fix="use 1 or more")
    split = {name: _Splitting(graph, plan.layers) for name, graph in plan.graphs.items()}
    graphs = {name: each.graph() for name, each in split.items() if each.nodes}
    rewritten = [replace(p, graphs=tuple(graphs.get(g.name, g) for g in p.graphs)) for p in plan.programs]
    known = {layer.name: layer for layer in plan.layers}
    parts = {name: layer for each in split.values() for name, layer in each.parts.items()}
    layers = tuple(_as_before(layer, known, parts) for layer in find_layers(rewritten))
    strided = tuple(s for s in plan.calibration.samples if s.step in _strided(s.of, steps))
    split_names = {layer.name for layer in parts.values()}
    refused = plan.refused("q_diffusion", lambda layer: "" if layer.name in split_names else UNSPLIT)
    return replace(
        refused, programs=tuple(rewritten), layers=layers, calibration=replace(plan.calibration, samples=strided)
    )


def _strided(count: int, steps: int) -> set[int]:
    return {at * count // min(count, steps) for at in range(min(count, steps))}


def _as_before(layer: Layer, known: dict[str, Layer], parts: dict[str, Layer]) -> Layer:
    """Return a layer with its values before the split, or with the scheme of the layer that it is a part of."""
    if layer.name in known:
        return replace(known[layer.name], sites=layer.sites, weight=layer.weight)
    return replace(layer, scheme=parts[layer.name].scheme)


class _Splitting:
    """Split the layers of one graph that read a concatenation of channels."""

    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        self.original, self.body = graph, body_of(graph)
        at = {site.node: layer for layer in layers for site in layer.sites if site.graph == graph.name}
        self.parts = dict[str, Layer]()
        self.nodes = list[tuple[fx.Node, Layer, list[int]]]()
        for node in self.body.graph.nodes:
            layer = at.get(node.name)
            if layer is None or layer.kind not in ("linear", "conv") or layer.groups > 1:
                continue
            bounds = _bounds(node.args[0], layer.axis)
            if bounds and layer.scheme.weight is not None:
                self.nodes.append((node, layer, bounds))

    def graph(self) -> Graph:
        """Return the graph with these layers split."""
        for node, layer, bounds in self.nodes:
            if any(value is not None for value in (layer.low, layer.smoothing, layer.branch, layer.rounded)):
                what = f"q_diffusion: {layer.name} is already smoothed, rounded or has ranges, and is to be split"
                raise PassError(what, fix="run q_diffusion before the passes that quantize")
            self._split(node, layer, bounds)
        self.body.graph.lint()
        self.body.recompile()
        example = example_inputs(self.original.inputs)
        return replace(self.original, body=export(self.original.name, self.body, example))

    def _split(self, node: fx.Node, layer: Layer, bounds: list[int]) -> None:
        x, weight, *options = node.args
        bias = options[0] if options else None
        assert isinstance(weight, fx.Node) and isinstance(x, fx.Node) and callable(node.target)
        total: fx.Node | None = None
        for at, (first, last) in enumerate(pairwise(bounds)):
            with self.body.graph.inserting_before(node):
                part = self.body.graph.call_function(aten.slice.Tensor, (x, layer.axis % _rank(x), first, last))
                piece = self._piece(layer, str(weight.target), at, first, last)
                args: tuple[Any, ...] = (part, piece, bias if at == 0 else None, *options[1:])
                output = self.body.graph.call_function(node.target, args)
                total = output if total is None else self.body.graph.call_function(aten.add.Tensor, (total, output))
        assert total is not None
        node.replace_all_uses_with(total)
        self.body.graph.erase_node(node)

    def _piece(self, layer: Layer, target: str, at: int, first: int, last: int) -> fx.Node:
        """Add the weights of some input channels as a module beside the one that they are taken from."""
        assert layer.weight is not None
        part = f"{target.removesuffix('.weight')}_part{at}"
        holder = nn.Module()
        holder.weight = channels(layer.weight, first, last)
        self.body.add_submodule(part, holder)
        node = self.body.graph.get_attr(f"{part}.weight")
        name = f"{layer.name}_part{at}"
        node.meta[LAYER] = name.removeprefix(f"{layer.component}.")
        self.parts[name] = layer
        return node


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].dim())


def _bounds(node: Any, axis: int) -> list[int]:
    """Return the channel offsets of the parts of a concatenated value; an empty list for another value."""
    while node.op == "call_function" and node.target is not aten.cat.default:
        shape = node.meta["val"].shape if isinstance(node.meta.get("val"), torch.Tensor) else None
        sources = [n for n in node.all_input_nodes if getattr(n.meta.get("val"), "shape", None) == shape]
        if has(node.target, Trait.NORMALIZES):
            sources = [node.args[0]]
        elif not has(node.target, Trait.POINTWISE):
            return []
        if shape is None or len(sources) != 1:
            return []
        (node,) = sources
    if node.target is not aten.cat.default:
        return []
    over = node.args[1] if len(node.args) > 1 else 0
    if over % _rank(node) != axis % _rank(node):
        return []
    bounds = [0]
    for part in node.args[0]:
        bounds.append(bounds[-1] + int(part.meta["val"].shape[axis]))
    return bounds
