"""Quantize activations with dynamic per-token scales, and smooth channels for ranges of steps.

Paper: Zhao et al., "ViDiT-Q: Efficient and Accurate Quantization of Diffusion Transformers", ICLR 2025,
       https://arxiv.org/abs/2406.02540. Scales of activations are computed when they run; with ``ranges`` each part of
       the trajectory has its own smoothing, and so its own rounded weights, as the paper's code has. With ``sensitive``
       (ViDiT-Q-MP) the weights of the layers with the largest output errors keep eight bits: the same part of those
       that feed attention and of the others, since their errors show in different ways.

Before (weights int8:channel, activations int8:tensor):
    y = linear(fake_quantize(x, scale, int8), dequantize(quantized, scales, int8))

After (alpha=0.5):
    t = max(abs(x * s)) / 127
    y = linear(fake_quantize(x * s / t, one, int8), dequantize(smoothed, smooth_scales, int8)) * t

where ``t`` is for each row, and the smoothing factors ``s`` are for each channel and range of steps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import fx

from diffc.compiler.analysis.stages import denoisers
from diffc.compiler.errors import PassError
from diffc.compiler.graph.body import body_of
from diffc.compiler.ir.program import Graph, Program
from diffc.compiler.quantization.formats import FORMATS, Spec
from diffc.compiler.quantization.layer import Layer, Site
from diffc.compiler.quantization.layer_error import layer_inputs
from diffc.compiler.quantization.plan import KINDS, Plan, aten
from diffc.passes.quantize.smoothquant import smoothquant

PRODUCTS = (aten.bmm.default, aten.baddbmm.default, aten.matmul.default)
"""How attention is computed where it is not one operator."""


def vidit_q(
    plan: Plan, *, ranges: int = 1, alpha: float | None = None, sensitive: float = 0.0, samples: int = 16
) -> Plan:
    """Make the scales of activations dynamic, smooth channels, and choose the bits of weights.

    ``ranges`` is the number of parts that the calls of the denoiser are divided into; ``alpha`` and ``samples`` are
    smoothquant's; ``sensitive`` is the part of the layers whose weights keep eight bits.
    """
    if not 0 <= sensitive <= 1:
        raise PassError(f"vidit_q: {sensitive} of the layers are sensitive", fix="use a part from 0 to 1")
    if ranges != 1:
        plan = _split(plan, ranges)
    plan = plan.refused("vidit_q", _against)
    plan = smoothquant(plan.mapped(_dynamic, _is_open), alpha=alpha, samples=samples)
    names = _sensitive(plan, sensitive, samples) if sensitive else set()
    return plan.mapped(_with_eight_bits, lambda layer: layer.name in names)


# Schemes


def _is_open(layer: Layer) -> bool:
    return layer.kind in ("linear", "conv") and layer.low is None and layer.rounded is None


def _against(layer: Layer) -> str:
    """Return why neither the weight nor the activation of a layer changes."""
    if layer.scheme.weight is None and layer.scheme.activation is None:
        return "its weight and its activation stay in float"
    return "" if _is_open(layer) else "it is no linear layer or convolution whose ranges and weight are undecided"


def _dynamic(layer: Layer) -> Layer:
    """Use a scale per row, or per image of a convolution, and at least one per channel of the weight."""
    weight, activation = layer.scheme.weight, layer.scheme.activation
    if weight is not None and weight.per == "tensor":
        weight = replace(weight, per="channel")
    if activation is not None and activation.per != "group":
        form = FORMATS[activation.format.name.removeprefix("u")]
        activation = Spec(form, "tensor" if layer.kind == "conv" else "token", when="dynamic")
    return replace(layer, scheme=replace(layer.scheme, weight=weight, activation=activation))


def _with_eight_bits(layer: Layer) -> Layer:
    weight = layer.scheme.weight
    return replace(layer, scheme=replace(layer.scheme, weight=weight and weight.widened("channel")))


def _sensitive(plan: Plan, part: float, samples: int) -> set[str]:
    """Name the layers of either kind with the largest errors."""
    feeding = {site for graph in plan.graphs.values() for site in _feeding_attention(graph)}
    open_ = [layer for layer in plan.layers if _is_open(layer) and layer.scheme.weight is not None]
    errors = {layer.name: inputs.error(layer, layer) for layer, inputs in layer_inputs(plan, open_, samples=samples)}
    sensitive = set[str]()
    for feeds in (True, False):
        names = [x.name for x in open_ if x.name in errors and feeds != feeding.isdisjoint(x.sites)]
        sensitive |= set(sorted(names, key=lambda name: -errors[name])[: math.ceil(part * len(names))])
    return sensitive


def _feeding_attention(graph: Graph) -> set[Site]:
    """Find the layers whose results reach attention with no other layer between."""
    body = body_of(graph)
    queue = [n for n in body.graph.nodes if KINDS.get(n.target) == "attention" or n.target in PRODUCTS]
    feeding = set[fx.Node]()
    for node in queue:
        sources = [source for source in node.all_input_nodes if source not in feeding]
        feeding.update(sources)
        queue += [source for source in sources if source.target not in KINDS]
    return {Site(graph.name, node.name) for node in feeding if node.target in KINDS}


# Ranges of steps


def _split(plan: Plan, ranges: int) -> Plan:
    """Copy the denoiser's graph for each part of the trajectory, and redirect its calls."""
    names = {graph.name for graph in denoisers(plan.programs)}
    fewest = min(sum(op.operator in names for op in program.ops) for program in plan.programs)
    if not 1 <= ranges <= fewest:
        fix = f"use 1 to {fewest}: a denoiser is called so often"
        raise PassError(f"vidit_q: {ranges} ranges of steps", fix=fix)
    calibration = plan.calibration
    targets = _targets(calibration.program, names, ranges)
    counts = Counter(targets.values())
    samples = []
    for sample in calibration.samples:
        at = sample.graph, sample.step
        if at in targets:
            before = sum(targets[sample.graph, step] == targets[at] for step in range(sample.step))
            sample = replace(sample, graph=targets[at], step=before, of=counts[targets[at]])
        samples.append(sample)
    program = _redirected(calibration.program, names, ranges)
    return replace(
        plan,
        programs=tuple(_redirected(each, names, ranges) for each in plan.programs),
        layers=tuple(part for layer in plan.layers for part in _parts(layer, names, ranges)),
        calibration=replace(calibration, program=program, samples=tuple(samples)),
    )


def _named(graph: str, at: int) -> str:
    return f"{graph}_range_{at + 1}" if at else graph


def _targets(program: Program, names: set[str], ranges: int) -> Mapping[tuple[str, int], str]:
    """Map each call of a denoiser, by its graph and number, to the graph of its range."""
    called = [op.operator for op in program.ops if op.operator in names]
    number = Counter[str]()
    targets = dict[tuple[str, int], str]()
    for at, name in enumerate(called):
        targets[name, number[name]] = _named(name, at * ranges // len(called))
        number[name] += 1
    return targets


def _redirected(program: Program, names: set[str], ranges: int) -> Program:
    targets = iter(_targets(program, names, ranges).values())
    ops = tuple(replace(op, operator=next(targets)) if op.operator in names else op for op in program.ops)
    copies = {_named(g.name, at): replace(g, name=_named(g.name, at)) for g in program.graphs for at in range(ranges)}
    called = dict.fromkeys(op.operator for op in ops if op.operator in copies)
    return replace(program, ops=ops, graphs=tuple(copies[name] for name in called))


def _parts(layer: Layer, names: set[str], ranges: int) -> Sequence[Layer]:
    """Return one layer for each range of steps: the copies of a graph have the same nodes."""
    within = [site for site in layer.sites if site.graph in names]
    if not within:
        return [layer]
    others = [
        replace(
            layer, name=f"{layer.name}.range_{at + 1}", sites=tuple(Site(_named(s.graph, at), s.node) for s in within)
        )
        for at in range(1, ranges)
    ]
    return [layer, *others]
