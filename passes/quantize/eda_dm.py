"""Allot calibration samples to steps by their information, and learn rounding by blocks and the layers in them.

Paper: Liu et al., "Enhanced Distribution Alignment for Post-Training Quantization of Diffusion Models", 2024,
       https://arxiv.org/abs/2401.04585 (temporal distribution alignment calibration, with density and diversity of
       the features in the middle of the network; fine-grained block reconstruction, 0.8 as published). Its radius
       is one for each model; here it is a part of the mean distance. The middle is the smallest sum of a
       residual block, of several the one in the middle.

Before (weights int4:channel, activations uint8:tensor):
    y = linear(x, w)

After (iterations=20):
    y = linear(fake_quantize(x, scale, zero, uint8), dequantize(quantized, scales, int4))

where ``scale`` is the same in every step, and each quantized value is one of the two beside ``w / scales``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from diffc.compiler.calibration.observe import watch
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import PassError
from diffc.compiler.ir.program import Graph
from diffc.compiler.quantization.blocks import find_blocks
from diffc.compiler.quantization.layer import for_all_steps
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.reconstruction import Learning, reconstruct
from diffc.compiler.quantization.refusals import UNREACHED, against_rounding
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges


def eda_dm(
    plan: Plan,
    *,
    samples: int = 32,
    radius: float = 0.5,
    diversity: float = 1.0,
    iterations: int = 500,
    rate: float = 0.05,
    layers: float = 0.8,
    windows: int = 8192,
    memory: float = 1.0,
    seed: int = 0,
) -> Plan:
    """Choose samples of each graph, then set ranges and round weights that no pass before has.

    Of each graph that runs more than once ``samples`` are allotted to its steps, by the number of others whose
    features lie within ``radius``, plus ``diversity`` times the distance of the features. ``layers`` is the weight of
    the layers' errors relative to their block's.
    """
    if samples < 1 or radius <= 0:
        raise PassError(f"eda_dm: {samples} samples, within a radius of {radius}", fix="use numbers above 0")
    random, allotted = torch.Generator().manual_seed(seed), list[Sample]()
    for graph in plan.graphs.values():
        samples_of = plan.calibration.of(graph)
        weights = _informative(plan, graph, radius, diversity) if any(sample.of > 1 for sample in samples_of) else None
        allotted += samples_of if weights is None else _allotted(samples_of, weights, samples, random)
    calibrated = replace(plan.mapped(for_all_steps), calibration=replace(plan.calibration, samples=tuple(allotted)))
    learning = Learning(iterations, rate, layers, seed)
    calibrated = calibrate_ranges(calibrated, by="mse")
    learned = reconstruct(calibrated, learning, blocks=True, windows=windows, memory=memory)
    rounded = {layer.name for layer in learned.layers if layer.rounded is not None}
    calibrated = calibrated.refused(
        "eda_dm", lambda layer: against_rounding(layer) or ("" if layer.name in rounded else UNREACHED)
    )
    return replace(learned, refusals=calibrated.refusals)


def _informative(plan: Plan, graph: Graph, radius: float, diversity: float) -> dict[int, float] | None:
    """Weigh each step by its features in the first trajectory; None where the graph has no residual block."""
    sums = [block.nodes[-1] for block in find_blocks(plan, lambda _: True) if block.graph.name == graph.name]
    if not sums:
        return None
    smallest = min(node.meta["val"].numel() for node in sums)
    middle = [node for node in sums if node.meta["val"].numel() == smallest]
    samples_of = plan.calibration.of(graph)
    features = list[torch.Tensor]()
    name = middle[len(middle) // 2].name
    one = [sample for sample in samples_of if sample.prompt == samples_of[0].prompt]
    watch(graph, one, {name: ()}, lambda _, __, output, ___: features.append(output))
    weights = _density_and_diversity(torch.stack(features), radius, diversity).tolist()
    return dict(zip((sample.step for sample in one), weights, strict=True))


def _density_and_diversity(features: torch.Tensor, radius: float, diversity: float) -> torch.Tensor:
    """Compute the weight of each step from its features [steps, batch, ...]."""
    distance = torch.stack([(features - each).square().flatten(1).mean(1) for each in features])
    steps = len(features)
    near = distance <= radius * distance.sum() / max(1, steps * (steps - 1))
    density = _from_0_to_1(near.sum(1) - 1.0)
    unlike = [1 - torch.nn.functional.cosine_similarity(features, each[None], dim=2) for each in features]
    weights = density + diversity * _from_0_to_1(torch.stack([each.sum() for each in unlike]))
    return weights if float(weights.sum()) > 0 else torch.ones(steps)


def _from_0_to_1(x: torch.Tensor) -> torch.Tensor:
    return (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12)


def _allotted(
    samples_of: list[Sample], weights: Mapping[int, float], count: int, random: torch.Generator
) -> list[Sample]:
    """Allot samples to steps in proportion to weights, as seats are by Webster; a step has no more than there are."""
    of_step: dict[int, list[Sample]] = {}
    for at in torch.randperm(len(samples_of), generator=random).tolist():
        of_step.setdefault(samples_of[at].step, []).append(samples_of[at])
    taken = dict.fromkeys(of_step, 0)
    for _ in range(min(count, len(samples_of))):
        free = [step for step in taken if taken[step] < len(of_step[step])]
        best = max(free, key=lambda step: (weights.get(step, 0.0) / (2 * taken[step] + 1), -step))
        taken[best] += 1
    return [sample for step in sorted(taken) for sample in of_step[step][: taken[step]]]
