"""Keep the first and the last layers of the denoiser at eight bits, or in float, where the others have fewer.

Paper: Shang et al., "Post-training Quantization on Diffusion Models", CVPR 2023,
       https://arxiv.org/abs/2211.15736 (as in its published code, which leaves both ends at eight bits).

Before (weights int4:channel, activations int4:tensor):
    hidden = linear(fake_quantize(latents, s0, int4), dequantize(quantized0, scales0, int4))
    out = linear(fake_quantize(hidden, s1, int4), dequantize(quantized1, scales1, int4))

After:
    hidden = linear(fake_quantize(latents, t0, int8), dequantize(wide0, fine0, int8))
    out = linear(fake_quantize(hidden, t1, int8), dequantize(wide1, fine1, int8))

A first layer computes many channels from the few of a port of latents, a last one computes the graph's output; only
elementwise and shaping operators lie between the layer and the port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import fx

from diffc.compiler.analysis.stages import denoisers, stages_of_ports
from diffc.compiler.graph.aten import Trait, has
from diffc.compiler.graph.body import body_of
from diffc.compiler.ir.program import Graph
from diffc.compiler.quantization.formats import Scheme
from diffc.compiler.quantization.layer import Layer, Site
from diffc.compiler.quantization.plan import KINDS, Plan
from diffc.compiler.quantization.refusals import ROUNDED

aten = torch.ops.aten

WIDENING = 4
"""The least ratio of a first layer's output channels to its input channels."""


def keep_first_last(plan: Plan, *, in_float: bool = False) -> Plan:
    """Keep the first and last layers of the denoiser in eight bits or in float, unless a user chose their scheme."""
    ends = set[Site]()
    for graph in denoisers(plan.programs):
        ends |= _first(graph, plan) | _last(graph)

    def reason(layer: Layer) -> str:
        if layer.kind == "attention" or ends.isdisjoint(layer.sites):
            return "it is neither the first nor the last layer of the denoiser"
        return "its scheme is a user's" if layer.requested else ROUNDED if layer.rounded is not None else ""

    plan = plan.refused("keep_first_last", reason)
    return plan.mapped(lambda layer: _widened(layer, in_float), lambda layer: not reason(layer))


def _widened(layer: Layer, in_float: bool) -> Layer:
    if in_float:
        return replace(layer, scheme=Scheme())
    weight, activation, output = layer.scheme.weight, layer.scheme.activation, layer.scheme.output
    scheme = Scheme(
        weight and weight.widened("channel"),
        activation and activation.widened("tensor" if layer.kind == "conv" else "token"),
        output and output.widened("tensor"),
    )
    return replace(layer, scheme=scheme)


def _first(graph: Graph, plan: Plan) -> set[Site]:
    body, ports = body_of(graph), stages_of_ports(graph, plan.programs)
    placeholders = zip(graph.inputs, body.graph.find_nodes(op="placeholder"), strict=True)
    start = [node for port, node in placeholders if "latent" in ports[port.name] and port.name not in graph.hidden]
    met = _reached(start, lambda node: node.users)
    return {Site(graph.name, node.name) for node in met if _widens(node)}


def _last(graph: Graph) -> set[Site]:
    gives = zip(graph.outputs, body_of(graph).graph.output_node().args[0], strict=True)  # type: ignore[arg-type]
    ends = [node for port, node in gives if port.name not in graph.hidden]
    met = _reached(ends, lambda node: node.all_input_nodes)
    return {Site(graph.name, node.name) for node in met if node.target in KINDS}


def _reached(start: Iterable[fx.Node], following: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """Find the nodes that are reached through operators that compute each element, or place, by itself."""
    reached, queue = set[fx.Node](), list(start)
    while queue:
        node = queue.pop()
        if node not in reached:
            reached.add(node)
            queue += following(node) if node.op == "placeholder" or _moves(node) else ()
    return reached


def _moves(node: fx.Node) -> bool:
    if node.target == aten.einsum.default:
        return len(node.all_input_nodes) == 1
    return has(node.target, Trait.MOVES | Trait.PADS | Trait.VIEW | Trait.POINTWISE)


def _widens(node: fx.Node) -> bool:
    """Return whether a layer computes many channels from the few of the graph's input."""
    if node.target not in KINDS or KINDS[node.target] not in ("linear", "conv"):
        return False
    rows, channels = node.args[1].meta["val"].shape[:2]  # type: ignore[union-attr]
    return bool(channels * WIDENING <= rows)
