"""What quantization cost, against the same measured directly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler import capture
from diffc.compiler.calibration.calibrate import Calibration, Calibrator
from diffc.compiler.driver.build import write_bundle
from diffc.compiler.driver.pass_manager import run as rewrite
from diffc.compiler.errors import BuildError
from diffc.compiler.metrics import psnr, sqnr
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.refusals import Refusal
from diffc.compiler.quantization.report import ImageError, LayerError, check, image_errors, layer_errors, report
from diffc.passes import NORMAL_FORM
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.runtime import load
from tests.one_graph import Tensors, plan_of, run, signal_to_noise
from tests.tolerances import GRAPH


def planned(module: nn.Module, feeds: Sequence[Tensors], weight: str, activation: str) -> Plan:
    """Plan with ranges and rounded weights."""
    return round_to_nearest(calibrate_ranges(plan_of(module, feeds, weight, activation)))


def feeds(*shape: int, count: int = 3) -> list[Tensors]:
    """Sample inputs."""
    torch.manual_seed(1)
    return [(torch.randn(*shape),) for _ in range(count)]


@pytest.mark.parametrize(
    ("weight", "activation"),
    [
        ("int4:channel", "float"),
        ("int4:channel", "int8:token"),
        ("int8:channel", "int4:tensor:step"),
        ("nvfp4", "uint4:tensor"),
    ],
)
def test_the_error_of_a_layer_is_that_of_the_graph_that_has_no_other(weight: str, activation: str) -> None:
    torch.manual_seed(0)
    module, given = nn.Linear(32, 48), feeds(5, 32)
    plan = planned(module, given, weight, activation)
    (found,) = layer_errors(plan)
    assert (found.weight, found.activation) == (str(parse_spec(weight)), str(parse_spec(activation) or "float"))
    if ":step" not in activation:
        wanted = signal_to_noise(run(applied(plan), given), run(plan.programs, given))
    else:
        outputs = [module(x) for (x,) in given]
        value = plan.layers[0].rounded.value(plan.layers[0].scheme.weight)  # type: ignore[union-attr,arg-type]
        low, high = plan.layers[0].low, plan.layers[0].high
        assert low is not None and high is not None
        scales = torch.maximum(low.abs(), high.abs())[0] / 7
        made = [
            nn.functional.linear((x / s).round().clamp(-8, 7) * s, value, module.bias)
            for (x,), s in zip(given, scales, strict=True)
        ]
        wanted = signal_to_noise(made, outputs)
    assert found.sqnr == pytest.approx(wanted, abs=0.01)


def test_the_error_of_a_layer_counts_its_quantized_output() -> None:
    torch.manual_seed(0)
    module, inputs = nn.Linear(32, 48), feeds(5, 32)
    float_output = plan_of(module, inputs, "int8:channel", "int8:tensor")
    quantized_output = float_output.mapped(
        lambda layer: replace(layer, scheme=replace(layer.scheme, output=parse_spec("uint4:tensor")))
    )
    plan = round_to_nearest(calibrate_ranges(quantized_output))
    (error,) = layer_errors(plan)
    assert error.sqnr == pytest.approx(
        signal_to_noise(run(applied(plan), inputs), run(plan.programs, inputs)), abs=0.01
    )
    (smaller,) = layer_errors(round_to_nearest(calibrate_ranges(float_output)))
    assert error.sqnr < smaller.sqnr - 10


def test_layers_come_the_worst_first_and_each_for_itself() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 48))
    given = feeds(5, 32)
    plan = plan_of(module, given, "int8:channel")
    bits = {"net.0": "int8:channel", "net.2": "int3:channel", "net.4": "int5:channel"}
    plan = round_to_nearest(plan.mapped(lambda layer: replace(layer, scheme=Scheme(parse_spec(bits[layer.name])))))
    found = layer_errors(plan)
    assert [each.name for each in found] == ["net.2", "net.4", "net.0"]
    assert [each.weight for each in found] == ["int3:channel", "int5:channel", "int8:channel"]
    alone = replace(plan, layers=tuple(each for each in plan.layers if each.name == "net.4"))
    inputs = [(module[:4](x),) for (x,) in given]
    value = alone.layers[0].rounded.value(alone.layers[0].scheme.weight)  # type: ignore[union-attr,arg-type]
    made = [nn.functional.linear(x, value, module[4].bias) for (x,) in inputs]
    assert found[1].sqnr == pytest.approx(signal_to_noise(made, [module[4](x) for (x,) in inputs]), abs=0.01)


class Denoiser(nn.Module):
    """Predict noise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both."""
        return self.out(self.conv(x).tanh())


def test_drift_is_what_the_bundle_and_the_float_program_differ_by(tmp_path: Path) -> None:
    torch.manual_seed(0)
    denoiser = Denoiser().requires_grad_(False)

    def sample(on_step: object) -> torch.Tensor:
        latents = torch.randn(1, 3, 8, 8)
        for _ in range(3):
            latents = latents - 0.3 * denoiser(latents)
            on_step(latents)  # type: ignore[operator]
        return (latents / 8 + 0.5).clamp(0, 1)

    program = rewrite(capture(sample, {"denoiser": denoiser}), NORMAL_FORM)
    calibration = Calibrator({}, prompts=("one", "two", "three"), seed=5)(program)
    plan = Plan.of((program,), calibration, lambda _: Scheme(parse_spec("int4:channel")))
    quantized = applied(round_to_nearest(plan))
    bundle = write_bundle(quantized, tmp_path / "x.diffc")
    found = image_errors(bundle, calibration, lambda _: None)
    assert [each.psnr for each in found] == sorted(each.psnr for each in found)
    sampler = load(bundle)
    for each in found:
        trajectory = next(d for d in calibration.trajectories if d.prompt == each.prompt)
        steps = list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]()
        picture = sampler(seed=trajectory.seed, output="np", callback=lambda p, to=steps: to.append(p.latents))
        wanted = np.moveaxis(trajectory.output.numpy(), 1, -1)
        assert each.psnr == pytest.approx(psnr(np.asarray(picture), wanted), abs=GRAPH * 1e3)
        assert len(each.steps) == 3
        assert each.steps == pytest.approx(
            [sqnr(a, b.numpy()) for a, b in zip(steps, trajectory.steps, strict=True)], abs=GRAPH * 1e3
        )


ERRORS = [LayerError(f"unet.{at}", "int4:channel", "float", 10.0 + at) for at in range(8)]
IMAGE_ERRORS = [ImageError("<b>a</b> & b", (30.0, 20.0, float("1e9")), 17.5), ImageError("c", (31.0, 22.0, 21.0), 19.0)]


def test_check_names_the_picture_and_the_worst_layers() -> None:
    check(ERRORS, IMAGE_ERRORS, 17.5)
    with pytest.raises(BuildError) as refused:
        check(ERRORS, IMAGE_ERRORS, 17.6)
    assert refused.value.what == "the image of '<b>a</b> & b' has 17.5 dB, below --min-psnr 17.6"
    named = ", ".join(f"unet.{at} ({10 + at:.1f} dB)" for at in range(5))
    assert refused.value.where == f"the worst layers: {named}"
    check(ERRORS, [], math.inf)


REFUSALS = (Refusal("gptq", "unet.0", "its weight stays in float"),)


def found() -> dict[str, object]:
    """Report what was made up."""
    plan = plan_of(nn.Linear(32, 48), feeds(5, 32), "int8:channel")
    calibration: Calibration = replace(plan.calibration, trajectories=(), seed=3, digest="abc")
    return report(
        ERRORS, IMAGE_ERRORS, replace(plan, calibration=calibration, refusals=REFUSALS), ("3 layers: <i>note</i>",)
    )


def test_a_report_says_it_as_data() -> None:
    made = found()
    assert made["calibration"] == {"prompts": 0, "seed": 3, "digest": "abc"}
    assert made["psnr"] == 17.5 and made["notes"] == ["3 layers: <i>note</i>"]
    assert made["refusals"] == [{"technique": "gptq", "layer": "unet.0", "reason": "its weight stays in float"}]
    assert made["layers"][0] == {"name": "unet.0", "weight": "int4:channel", "activation": "float", "sqnr": 10.0}  # type: ignore[index]
