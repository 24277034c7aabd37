"""Use step-indexed scales for activations that change along the trajectory, where the output's error falls.

Paper: Huang et al., "TFMQ-DM: Temporal Feature Maintenance Quantization for Diffusion Models", CVPR 2024,
       https://arxiv.org/abs/2311.16503 (finite set calibration); the choice by measured error is that of its
       extension, "Temporal Feature Matters", 2024, https://arxiv.org/abs/2407.19547.

The papers' temporal information block, which depends on the step alone, is exact already: the pass ``stage`` has
computed it for every step. A layer of it that is left in the graph gets step-indexed scales in any case.

Before (weights int8:channel, activations uint8:tensor):
    y = linear(fake_quantize(x, scale, zero, uint8), dequantize(quantized, w_scales, int8))

After:
    y = linear(fake_quantize(x / t, one, int8), dequantize(quantized, w_scales, int8)) * t

where ``t`` is an input of the graph: the scale of the step.
"""

from __future__ import annotations

import math
from dataclasses import replace

from diffc.compiler.analysis.stages import STEP, stages_of_nodes, stages_of_ports
from diffc.compiler.errors import PassError
from diffc.compiler.graph.body import body_of
from diffc.compiler.quantization.formats import FORMATS, Spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.layer_error import layer_inputs
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.ranges import METHODS, ranged
from diffc.compiler.quantization.refusals import RANGED, UNREACHED


def tfmq_dm(plan: Plan, *, by: str = "mse", gain: float = 1.0, samples: int = 16) -> Plan:
    """Choose for each layer with a static scale that has no range yet, and set the ranges of those.

    ``gain`` is the least improvement, in dB, by step-indexed scales: they cost a division and a product at run time.
    The ranges are chosen by all samples, and the error is measured on ``samples`` of each graph.
    """
    if by not in METHODS:
        raise PassError(f"tfmq_dm: {by!r} is no range method", fix=f"use {', '.join(METHODS)}")
    targets = [layer for layer in plan.layers if _is_static(layer)]
    statistics = plan.statistics(targets)
    static = {layer.name: ranged(layer, statistics[layer.name], by) for layer in targets if layer.name in statistics}
    stepped = {name: ranged(_stepped(layer), statistics[name], by) for name, layer in static.items()}
    temporal = _temporal(plan)
    decided = {name: stepped[name] for name in static if name in temporal}
    for layer, inputs in layer_inputs(
        plan, [layer for name, layer in static.items() if name not in decided], samples=samples
    ):
        errors = [inputs.error(layer, each[layer.name]) for each in (static, stepped)]
        is_better = errors[0] > errors[1] * math.pow(10, gain / 10)
        decided[layer.name] = stepped[layer.name] if is_better else layer

    def reason(layer: Layer) -> str:
        if not _is_static(layer):
            return RANGED if layer.low is not None else "its activation has no static scale for all of it"
        if layer.name not in decided:
            return UNREACHED
        is_stepped = decided[layer.name].scheme != layer.scheme
        return "" if is_stepped else f"scales for each step are not {gain:g} dB better"

    plan = plan.refused("tfmq_dm", reason)
    return plan.mapped(lambda layer: decided[layer.name], lambda layer: layer.name in decided)


def _is_static(layer: Layer) -> bool:
    spec = layer.scheme.activation
    if layer.kind not in ("linear", "conv") or layer.low is not None or spec is None:
        return False
    return spec.per == "tensor" and spec.when == "static"


def _stepped(layer: Layer) -> Layer:
    """Return a spec with step-indexed scales, without zero points."""
    spec = layer.scheme.activation
    assert spec is not None
    form = FORMATS[spec.format.name.removeprefix("u")]
    return replace(layer, scheme=replace(layer.scheme, activation=Spec(form, when="step")))


def _temporal(plan: Plan) -> set[str]:
    """Name the layers whose output depends on the step alone."""
    reached = set[tuple[str, str]]()
    for graph in plan.graphs.values():
        body = body_of(graph)
        stages = stages_of_nodes(body, graph, stages_of_ports(graph, plan.programs))
        reached |= {(graph.name, node.name) for node, stage in stages.items() if stage == STEP}
    return {layer.name for layer in plan.layers if any((site.graph, site.node) in reached for site in layer.sites)}
