"""Samples go to steps that stand for many or are unlike the others; layers in a block count beside it."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import PassError
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.plan import Plan
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.eda_dm import eda_dm
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import plan_of, run, signal_to_noise
from tests.tolerances import ADAROUND_GAIN

WIDTH, PROMPTS = 32, 6
MODULE = importlib.import_module("diffc.passes.quantize.eda_dm")


class Residual(nn.Module):
    """Add what two layers make of the input to it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the sum."""
        return x + self.two(torch.relu(self.one(x)))


def plan(of: int = 8, activation: str = "float") -> Plan:
    """Plan a block with samples of which the first six steps are alike, and the last two are unlike any."""
    torch.manual_seed(1)
    base, mixing = torch.randn(8, 20, WIDTH // 4), torch.randn(WIDTH // 4, WIDTH)
    base[1:6] = base[:1] + 0.01 * torch.randn(5, 20, WIDTH // 4)
    samples = [
        Sample("net", step, of, prompt, (torch.randn_like(base[step]) * 0.01 @ mixing + base[step] @ mixing,))
        for prompt in range(PROMPTS)
        for step in range(8)
    ]
    made = plan_of(Residual(), [sample.feeds for sample in samples], "int4:channel", activation)
    return replace(made, calibration=replace(made.calibration, samples=tuple(samples)))


def counts(samples: tuple[Sample, ...]) -> list[int]:
    """Count the samples of each step."""
    return np.bincount([sample.step for sample in samples], minlength=8).tolist()


def test_weights_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    features = torch.randn(5, 2, 7, 3)
    features[2] = features[3] + 0.1
    x, radius = features.numpy().astype(np.float64), 0.6
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    distance = {(i, j): np.mean((x[i] - x[j]) ** 2) for i, j in pairs}
    limit = radius * np.mean(list(distance.values()))
    density = np.array([sum(distance[i, j] <= limit for j in range(5) if j != i) for i in range(5)], float)
    unlike = np.zeros(5)
    for i, j in pairs:
        cosine = (x[i] * x[j]).sum(1) / np.linalg.norm(x[i], axis=1) / np.linalg.norm(x[j], axis=1)
        unlike[i] += (1 - cosine).sum()
    wanted = sum(w * (v - v.min()) / (v.max() - v.min()) for w, v in ((1.0, density), (1.2, unlike)))
    found = MODULE._density_and_diversity(features, radius, 1.2)
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted), rtol=1.3e-6, atol=1e-5)


def test_samples_are_allotted_in_proportion() -> None:
    given = [Sample("net", step, 4, prompt, ()) for prompt in range(10) for step in range(4)]
    made = MODULE._allotted(given, {0: 1.0, 1: 2.0, 2: 5.0, 3: 0.0}, 8, torch.Generator().manual_seed(0))
    assert counts(tuple(made))[:4] == [1, 2, 5, 0]
    assert len({(sample.step, sample.prompt) for sample in made}) == 8


def test_no_step_is_given_more_than_there_is() -> None:
    given = [Sample("net", step, 2, prompt, ()) for prompt in range(3) for step in range(2)]
    made = MODULE._allotted(given, {0: 1.0, 1: 99.0}, 5, torch.Generator().manual_seed(0))
    assert counts(tuple(made))[:2] == [2, 3]


def test_without_diversity_the_unlike_get_nothing_and_with_much_of_it_more_than_others() -> None:
    assert counts(eda_dm(plan(), samples=12, diversity=0.0, iterations=1).calibration.samples) == [2] * 6 + [0] * 2
    found = counts(eda_dm(plan(), samples=12, diversity=20.0, iterations=1).calibration.samples)
    assert min(found[6:]) > max(found[:6])


def test_a_graph_that_runs_once_keeps_its_samples() -> None:
    assert len(eda_dm(plan(of=1), samples=5, iterations=1).calibration.samples) == 8 * PROMPTS


def test_the_output_is_nearer_than_that_of_rounding_to_nearest() -> None:
    given = plan()
    feeds = [sample.feeds for sample in given.calibration.samples]
    wanted = run(given.programs, feeds)
    learned, nearest = (
        signal_to_noise(run(applied(each), feeds), wanted)
        for each in (eda_dm(given, iterations=200, rate=0.1), round_to_nearest(given))
    )
    assert learned - nearest > ADAROUND_GAIN


def test_layers_in_a_block_come_nearer_where_they_count() -> None:
    given = plan()
    feeds = [sample.feeds for sample in given.calibration.samples]

    def inner_error(layers: float) -> float:
        learned = eda_dm(given, iterations=300, rate=0.1, layers=layers)
        (layer,) = (each for each in learned.layers if each.name == "net.one")
        assert layer.rounded is not None and layer.scheme.weight is not None
        difference = layer.rounded.value(layer.scheme.weight) - layer.matrix()
        return sum(float((x @ difference.T).square().sum()) for (x,) in feeds)

    assert inner_error(10.0) < inner_error(0.1)


def test_one_static_scale_is_found_for_all_steps() -> None:
    stepped = calibrate_ranges(plan(activation="int8:tensor:step"))
    for layer in eda_dm(stepped, samples=4, iterations=1).layers:
        assert layer.high is not None and layer.high.shape == (1, 1) and layer.rounded is not None


def test_choosing_no_samples_is_refused() -> None:
    with pytest.raises(PassError, match="eda_dm: 0 samples"):
        eda_dm(plan(), samples=0)
