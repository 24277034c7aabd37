"""Calibrate one static range for all steps, on samples of the trajectory that lie towards its end.

Paper: Shang et al., "Post-training Quantization on Diffusion Models", CVPR 2023,
       https://arxiv.org/abs/2211.15736 (steps follow a normal distribution skewed towards the image; as
       published: of mean and standard deviation 0.4, noise being 1 and the image 0, and values beyond the ends count
       for the ends).

Before (weights int8:channel, activations uint8:tensor):
    y = linear(x, w)

After:
    y = linear(fake_quantize(x, scale, zero, uint8), w)

where the scale is the same in every step. Later passes run these samples alone.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import torch

from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import PassError
from diffc.compiler.quantization.layer import for_all_steps
from diffc.compiler.quantization.plan import Plan
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges


def ptq4dm(plan: Plan, *, samples: int = 256, mean: float = 0.4, deviation: float = 0.4, seed: int = 0) -> Plan:
    """Choose ``samples`` of each graph that runs more than once, at random, and set the ranges that no pass has set.

    No sample is chosen twice. Step-indexed scales become one static scale.
    """
    if deviation <= 0 or samples < 1:
        what = f"ptq4dm: {samples} samples cannot be chosen with a deviation of {deviation}"
        raise PassError(what, fix="use at least one sample, and a deviation above 0, such as 0.4")
    sampled = _sampled(plan.calibration, samples, NormalDist(mean, deviation), seed)
    ranged = calibrate_ranges(replace(plan.mapped(for_all_steps), calibration=sampled), by="mse")
    own = (replace(refusal, technique="ptq4dm") for refusal in ranged.refusals[len(plan.refusals) :])
    return replace(ranged, refusals=(*plan.refusals, *own))


def _sampled(calibration: Calibration, count: int, times: NormalDist, seed: int) -> Calibration:
    random, sampled = torch.Generator().manual_seed(seed), set[int]()
    for name in dict.fromkeys(sample.graph for sample in calibration.samples):
        at = [n for n, sample in enumerate(calibration.samples) if sample.graph == name]
        weights = torch.tensor([_weight(calibration.samples[n], times) for n in at])
        if all(calibration.samples[n].of == 1 for n in at):
            sampled.update(at)
        else:
            places = torch.multinomial(weights, min(count, len(at)), generator=random)
            sampled.update(at[n] for n in places.tolist())
    return replace(calibration, samples=tuple(calibration.samples[n] for n in sorted(sampled)))


def _weight(sample: Sample, times: NormalDist) -> float:
    """Compute the probability of each step: noise is at time 1, and the last step takes the rest below time 0."""
    late, early = (1 - (sample.step + part) / sample.of for part in (1, 0))
    above = times.cdf(early) if sample.step else 1.0
    below = times.cdf(late) if sample.step + 1 < sample.of else 0.0
    return above - below
