"""Scales for each step where the range drifts enough for that to be worth it, and one for all where it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import PassError
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.layer_error import layer_inputs
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.tracing.trace import capture
from diffc.passes.fuse_linear import fuse_linear
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.passes.quantize.tfmq_dm import tfmq_dm
from tests.one_graph import Tensors, layer_of, plan_of
from tests.tolerances import STEP_GAIN, STEP_RANGE

STEPS = 6


def drifting(factor: float) -> list[Tensors]:
    """Draw inputs that are ``factor`` times as small in each step as in the one before."""
    torch.manual_seed(0)
    return [(torch.randn(4, 32) / factor**step,) for step in range(STEPS)]


def error(layer: Layer, plan: Plan) -> float:
    """Give a layer's squared error, relative, with the weight's rounding."""
    ((given, found),) = layer_inputs(plan, plan.layers, samples=STEPS)
    return found.error(given, layer)


@pytest.mark.parametrize(
    ("given", "found"), [("uint8:tensor", "int8:tensor:step"), ("e4m3:tensor", "e4m3:tensor:step")]
)
def test_a_range_that_drifts_gets_a_scale_for_each_step(given: str, found: str) -> None:
    feeds = drifting(100.0)
    layer = layer_of(tfmq_dm(plan_of(nn.Linear(32, 16), feeds, "int8:channel", given), by="minmax"))
    assert str(layer.scheme.activation) == found
    assert layer.high is not None
    largest = torch.stack([x.abs().amax() for (x,) in feeds])[None]
    assert torch.equal(layer.high.maximum(-layer.low), largest)


def test_one_that_does_not_keeps_what_calibration_gives() -> None:
    plan = plan_of(nn.Linear(32, 16), drifting(1.0), "int8:channel", "uint8:tensor")
    layer, static = layer_of(tfmq_dm(plan)), layer_of(calibrate_ranges(plan))
    assert (str(layer.scheme.activation), layer.low, layer.high) == ("uint8:tensor", static.low, static.high)


def test_each_step_is_nearer() -> None:
    plan = plan_of(nn.Linear(32, 16), drifting(3.0), "int8:channel", "int8:tensor")
    static, stepped = (layer_of(round_to_nearest(made(plan))) for made in (calibrate_ranges, tfmq_dm))
    assert error(stepped, plan) * 10 ** (STEP_GAIN / 10) < error(static, plan)


def test_what_is_gained_must_be_worth_it() -> None:
    plan = plan_of(nn.Linear(32, 16), drifting(1.5), "int8:channel", "int8:tensor")
    assert str(layer_of(tfmq_dm(plan)).scheme.activation) == "int8:tensor:step"
    assert str(layer_of(tfmq_dm(plan, gain=30.0)).scheme.activation) == "int8:tensor"


class Timed(nn.Module):
    """Add the time, which a layer of its own projects."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.picture = nn.Linear(16, 48), nn.Linear(48, 48)

    def forward(self, sample: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Predict the noise."""
        return self.picture(sample + self.time(time.cos().expand(1, 16)))


def test_a_layer_of_the_step_alone_has_its_set_of_inputs() -> None:
    denoiser = Timed().eval()

    def sample() -> torch.Tensor:
        latents = torch.randn(1, 48)
        for step in range(STEPS):
            latents = latents - 0.1 * denoiser(latents, torch.tensor([float(step)]))
        return latents

    program = fuse_linear(capture(sample, {"denoiser": denoiser}))
    feeds = [(torch.ones(1, 48), torch.tensor([float(step)])) for step in range(STEPS)]
    samples = tuple(Sample("denoiser", step, STEPS, 0, given) for step, given in enumerate(feeds))
    scheme = Scheme(parse_spec("int8:channel"), parse_spec("uint8:tensor"))
    plan = tfmq_dm(Plan.of((program,), Calibration(program, samples, (), 0, ""), lambda _: scheme), gain=1000.0)
    found = {layer.name: layer for layer in plan.layers}
    time, picture = found["denoiser.time"], found["denoiser.picture"]
    assert (str(time.scheme.activation), str(picture.scheme.activation)) == ("int8:tensor:step", "uint8:tensor")
    wanted = torch.arange(float(STEPS)).cos().abs()[None]
    assert time.low is not None and time.high is not None
    assert (time.high.maximum(-time.low) - wanted).abs().max() < STEP_RANGE


def test_a_step_without_samples_has_the_range_of_all() -> None:
    plan = plan_of(nn.Linear(32, 16), drifting(3.0), "int8:channel", "int8:tensor")
    some = replace(plan, calibration=replace(plan.calibration, samples=plan.calibration.samples[1:]))
    high = layer_of(tfmq_dm(some, by="minmax")).high
    assert high is not None and high[0, 0] == high.max()


def test_what_is_decided_or_not_static_stays() -> None:
    feeds = drifting(100.0)
    for activation in ("int8:token", "int8:tensor:dynamic", "int8:group=16:dynamic", "float"):
        plan = plan_of(nn.Linear(32, 16), feeds, "int8:channel", activation)
        assert layer_of(tfmq_dm(plan)) is layer_of(plan)
    decided = calibrate_ranges(plan_of(nn.Linear(32, 16), feeds, "int8:channel", "int8:tensor"))
    assert layer_of(tfmq_dm(decided)) is layer_of(decided)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(PassError, match="tfmq_dm: 'best' is no range method"):
        tfmq_dm(plan_of(nn.Linear(32, 16), drifting(1.0), "int8:channel", "int8:tensor"), by="best")
