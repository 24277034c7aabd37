"""Samples fall on steps as a clipped normal distribution says, and ranges are one for all of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import PassError
from diffc.compiler.quantization.plan import Plan
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.ptq4dm import ptq4dm
from tests.one_graph import layer_of, plan_of
from tests.tolerances import DRAWN

STEPS, PROMPTS = 10, 400


def plan(activation: str = "int8:tensor") -> Plan:
    """Plan a layer with many samples of each step; the numbers grow with the steps."""
    torch.manual_seed(0)
    one = plan_of(nn.Linear(24, 40), [(torch.randn(2, 24),)], "int8:channel", activation)
    samples = [
        Sample("net", step, STEPS, prompt, (torch.randn(2, 24) * (step + 1),))
        for prompt in range(PROMPTS)
        for step in range(STEPS)
    ]
    return replace(one, calibration=replace(one.calibration, samples=tuple(samples)))


def test_steps_are_drawn_as_the_paper_says() -> None:
    found = ptq4dm(plan("float"), samples=200).calibration.samples
    assert len(found) == 200
    share = torch.bincount(torch.tensor([sample.step for sample in found]), minlength=STEPS) / 200
    bounds = [-math.inf, *(1 - n / STEPS for n in range(STEPS - 1, 0, -1)), math.inf]
    below = [0.5 * (1 + math.erf((bound - 0.4) / (0.4 * math.sqrt(2)))) for bound in bounds]
    wanted = torch.tensor([b - a for a, b in zip(below, below[1:], strict=False)]).flip(0)
    assert float((share - wanted).abs().max()) < DRAWN


def test_the_seed_says_which() -> None:
    one, again, other = (ptq4dm(plan("float"), samples=50, seed=seed).calibration.samples for seed in (1, 1, 2))
    which = [[(sample.prompt, sample.step) for sample in samples] for samples in (one, again, other)]
    assert which[0] == which[1] != which[2]


def test_a_graph_that_runs_once_keeps_its_samples() -> None:
    given = plan()
    samples = tuple(replace(sample, step=0, of=1) for sample in given.calibration.samples[:30])
    once = replace(given, calibration=replace(given.calibration, samples=samples))
    assert len(ptq4dm(once, samples=5).calibration.samples) == 30


def test_ranges_are_of_least_squared_error_over_what_was_drawn() -> None:
    drawn = ptq4dm(plan(), samples=20)
    wanted = layer_of(calibrate_ranges(replace(plan(), calibration=drawn.calibration), by="mse"))
    assert layer_of(drawn).high == wanted.high
    assert layer_of(drawn).high != layer_of(calibrate_ranges(plan(), by="mse")).high


def test_scales_of_steps_become_one() -> None:
    layer = layer_of(ptq4dm(calibrate_ranges(plan("int8:tensor:step")), samples=20))
    assert layer.high is not None and layer.high.shape == (1, 1)
    assert str(layer.scheme.activation) == "int8:tensor"


def test_layers_without_a_range_to_choose_are_named() -> None:
    (refusal,) = ptq4dm(plan("float"), samples=20).refusals
    assert (refusal.technique, refusal.layer) == ("ptq4dm", "net.weight")
    assert refusal.reason == "its inputs and output stay in float, or have scales that are computed at run time"
    assert ptq4dm(plan(), samples=20).refusals == ()


def test_drawing_no_samples_is_refused() -> None:
    with pytest.raises(PassError, match="0 samples cannot be chosen"):
        ptq4dm(plan(), samples=0)
