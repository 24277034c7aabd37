"""Measure the cost of quantization: the error of each layer, of the latents after each step, and of the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.calibration.observe import watch
from diffc.compiler.calibration.run_program import request_of
from diffc.compiler.calibration.trajectory import Sample, Trajectory
from diffc.compiler.errors import BuildError, Progress
from diffc.compiler.metrics import psnr, sqnr
from diffc.compiler.quantization.plan import Plan
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.interpreter import Interpreter, linear
from diffc.runtime.program.program import Op

PROMPTS = 4
"""The number of calibrated prompts that are sampled with the bundle."""

CALLS = 6
"""The number of calls of a graph in which a layer's error is measured."""

WORST = 5
"""The number of layers that an error names."""


@dataclass(frozen=True)
class LayerError:
    """Hold a layer's scheme, as text, and the SQNR in dB of its output, with float inputs."""

    name: str
    weight: str
    activation: str
    sqnr: float


def layer_errors(plan: Plan) -> list[LayerError]:
    """Measure every quantized layer with a weight, on float inputs; the worst come first."""
    signal, noise = dict[str, float](), dict[str, float]()
    for graph in plan.graphs.values():
        at = {s.node: layer for layer in plan.layers if layer.rounded for s in layer.sites if s.graph == graph.name}
        at = {node: layer for node, layer in at.items() if layer.kind != "embedding"}
        samples = plan.calibration.of(graph)

        def seen(node: fx.Node, inputs: tuple[Any, ...], output: torch.Tensor, sample: Sample, at: Any = at) -> None:
            layer = at[node.name]
            quantized = layer.apply(inputs[0], sample=sample, bias=inputs[1])
            signal[layer.name] = signal.get(layer.name, 0.0) + _power(output)
            noise[layer.name] = noise.get(layer.name, 0.0) + _power(quantized - output)

        if samples and at:
            watch(graph, samples[:: math.ceil(len(samples) / CALLS)], dict.fromkeys(at, (0, 2)), seen)
    schemes = {layer.name: layer.scheme for layer in plan.layers}
    errors = [
        LayerError(
            name,
            str(schemes[name].weight or "float"),
            str(schemes[name].activation or "float"),
            10 * math.log10(signal[name] / noise[name]) if noise[name] and signal[name] else 200.0,
        )
        for name in signal
    ]
    return sorted(errors, key=lambda error: error.sqnr)


def _power(x: torch.Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))


@dataclass(frozen=True)
class ImageError:
    """Hold, for one prompt, the SQNR in dB of the latents after each step, and the PSNR of the image."""

    prompt: str
    steps: tuple[float, ...]
    psnr: float


def image_errors(bundle: Path, calibration: Calibration, progress: Progress) -> list[ImageError]:
    """Sample calibrated prompts with a bundle, from the same noise, and compare each step with the float program's."""
    opened = open_bundle(bundle)
    program, interpreter = opened.programs[calibration.program.name], Interpreter(opened)
    scalars = {name: default for name, default in program.scalars.items() if default is not None}
    images = []
    for trajectory in calibration.trajectories[:PROMPTS]:
        progress(f"measure {trajectory.prompt}")
        steps = list[np.ndarray[Any, Any]]()

        def on_step(op: Op, values: Mapping[str, Any], steps: list[Any] = steps) -> None:
            steps.append(linear(op, values, scalars))

        texts, noises = request_of(calibration.program, trajectory.prompt, trajectory.seed)
        outputs = interpreter.run(program, texts | noises, scalars, on_step=on_step)
        image = np.asarray(outputs[program.outputs[0]])
        ratios = [sqnr(a, b.numpy()) for a, b in zip(steps, trajectory.steps, strict=True)]
        images.append(ImageError(trajectory.prompt, tuple(ratios), _psnr(image, trajectory)))
    return sorted(images, key=lambda each: each.psnr)


def _psnr(image: Any, trajectory: Trajectory) -> float:
    reference = trajectory.output.numpy()
    in_range = reference.min() >= 0 and reference.max() <= 1
    return psnr(image, reference, 1.0 if in_range else float(np.abs(reference).max()))


def report(
    errors: Sequence[LayerError], images: Sequence[ImageError], plan: Plan, notes: Sequence[str]
) -> dict[str, Any]:
    """Return the report as the manifest records it."""
    return {
        "calibration": {
            "prompts": len(plan.calibration.prompts),
            "seed": plan.calibration.seed,
            "digest": plan.calibration.digest,
        },
        "psnr": min((each.psnr for each in images), default=None),
        "drift": [asdict(each) for each in images],
        "layers": [asdict(error) for error in errors],
        "notes": list(notes),
        "refusals": [asdict(refusal) for refusal in plan.refusals],
    }


def check(errors: Sequence[LayerError], images: Sequence[ImageError], least: float) -> None:
    """Raise `BuildError` that names the worst layers where an image misses the requested PSNR."""
    if images and images[0].psnr < least:
        worst = ", ".join(f"{error.name} ({error.sqnr:.1f} dB)" for error in errors[:WORST])
        what = f"the image of {images[0].prompt!r} has {images[0].psnr:.1f} dB, below --min-psnr {least:g}"
        fix = "choose more bits, another --quant, or more bits for these layers in a --recipe"
        raise BuildError(what, where=f"the worst layers: {worst}", fix=fix)
