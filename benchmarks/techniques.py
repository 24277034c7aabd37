"""Compare techniques of quantization by the error of one call of the denoiser, along the whole trajectory.

A picture may take another turn after an error that is small; the error of a call cannot. Each row runs its techniques
on a plan of an example model, and then the quantized denoiser, in PyTorch, on what its calls are given in trajectories
of other prompts and seeds than those that it was calibrated with. Rows that are measured are kept, so that a run that
was interrupted goes on.

    make techniques                         # all rows of docs/measured/techniques.md
    python -m benchmarks.techniques --model shapes-dit --precision w4a4
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quantization import GUIDANCE, MODELS, ROOT, STEPS
from diffc.compiler.analysis.stages import denoiser
from diffc.compiler.backends.target import parse_target
from diffc.compiler.bundle.tokenizer_file import tokenizer_text
from diffc.compiler.calibration.calibrate import Calibration, Calibrator
from diffc.compiler.checkpoint.load import load
from diffc.compiler.driver.options import read_quantization
from diffc.compiler.driver.pass_manager import run
from diffc.compiler.driver.quantize import plan_of
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.lazy_weights import materialize
from diffc.compiler.ir.program import Graph, Program
from diffc.compiler.metrics import sqnr
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.pipeline import Sampling, trace_pipeline
from diffc.passes import NORMAL_FORM, stage
from diffc.runtime.disk_cache import Cache

PAGE = ROOT / "docs" / "measured" / "techniques.md"

HELD_OUT = ("a large blue star right of a small red circle", "a yellow triangle", "a sailing boat at sunset")
"""Prompts that nothing is calibrated with."""

TECHNIQUES: Mapping[str, Sequence[str]] = {
    "w8a8": (
        "round_to_nearest:by=minmax",
        "calibrate_ranges:by=minmax+round_to_nearest:by=minmax",
        "calibrate_ranges:by=percentile+round_to_nearest:by=minmax",
        "calibrate_ranges:by=kl+round_to_nearest:by=minmax",
        "ptq4dm+round_to_nearest:by=minmax",
        "tfmq_dm+round_to_nearest:by=minmax",
        "smoothquant+round_to_nearest:by=minmax",
        "smoothquant+static_scales+round_to_nearest:by=minmax",
        "vidit_q+round_to_nearest:by=minmax",
        "round_to_nearest:by=minmax+decoupled_error_correction",
    ),
    "w4a8": (
        "round_to_nearest:by=minmax",
        "round_to_nearest",
        "decoupled_error_correction",
        "gptq",
        "gptq+decoupled_error_correction",
        "keep_first_last+gptq",
        "keep_first_last+smoothquant+calibrate_ranges+gptq",
        "q_diffusion+keep_first_last+calibrate_ranges+gptq",
        "keep_first_last+vidit_q+gptq",
        "keep_first_last+svdquant+calibrate_ranges+gptq",
    ),
    "w4a4": (
        "round_to_nearest",
        "decoupled_error_correction",
        "keep_first_last+gptq",
        "keep_first_last+smoothquant+calibrate_ranges+gptq",
        "keep_first_last+svdquant+calibrate_ranges+gptq",
    ),
    "fp8": ("round_to_nearest", "fp_quant"),
    "fp4": ("round_to_nearest", "keep_first_last+gptq", "keep_first_last+svdquant+calibrate_ranges+gptq"),
    "w8a8 static": (
        "calibrate_ranges:by=minmax+round_to_nearest:by=minmax",
        "round_to_nearest:by=minmax",
        "ptq4dm+round_to_nearest:by=minmax",
        "q_diffusion+round_to_nearest:by=minmax",
        "tfmq_dm+round_to_nearest:by=minmax",
        "smoothquant+round_to_nearest:by=minmax",
    ),
    "w4a8 static": ("round_to_nearest", "adaround", "adaround:by=block", "eda_dm"),
    "fp4 static": ("round_to_nearest", "fp_quant", "adaround", "fp_quant+adaround"),
}
"""The techniques that are compared for each precision; ``static`` is what most papers begin with, as `STATIC` says."""

STATIC = {
    "w8a8": ("int8:channel", "uint8:tensor"),
    "w4a8": ("int4:channel", "uint8:tensor"),
    "fp4": ("e2m1:channel", "e4m3:tensor"),
}
"""Schemes with one scale for each channel of a weight, and one for all of an activation."""


@dataclass(frozen=True)
class Model:
    """Hold a model as it is quantized, and held-out samples of its denoiser's calls with what they give in float."""

    programs: tuple[Program, ...]
    tokenizers: Mapping[str, bytes]
    held_out: Calibration
    references: tuple[torch.Tensor, ...]

    @staticmethod
    def of(source: Path) -> Model:
        """Trace, capture and stage a checkpoint, and draw the held-out prompts."""
        pipeline: Any = load(source, lazy_weights=True)
        calls = ComponentCalls()
        traced = trace_pipeline(pipeline, Sampling(steps=STEPS, guidance=GUIDANCE), calls)
        programs = stage([run(program, NORMAL_FORM) for program in calls.graphs(traced)])
        read = {op.attr("tokenizer") for program in programs for op in program.ops if op.operator == "tokenize"}
        texts = {str(name): tokenizer_text(str(name), pipeline.components[str(name)]) for name in read}
        encoded = {name: text.encode() for name, text in texts.items()}
        held_out = Calibrator(encoded, prompts=HELD_OUT, seed=1000)(programs[0])
        graph = denoiser(programs[0])
        assert graph is not None
        return Model(programs, encoded, held_out, tuple(_outputs(graph, held_out, [])))

    def errors(self, precision: str, techniques: str) -> list[float]:
        """Quantize, and give the ratio in dB of signal to error of each held-out call."""
        precision, _, static = precision.partition(" ")
        target = parse_target(f"ort-{precision}")
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as recipe:
            settings = [f"{kind} = {list(STATIC[precision])}" for kind in ("linear", "conv")] if static else []
            recipe.write("\n".join(["[quantize]", *settings]))
            recipe.flush()
            options = read_quantization(target, techniques, recipe.name)
        assert options is not None
        calibrator = Calibrator(self.tokenizers, source="techniques", cache=Cache.default())
        programs = applied(plan_of(self.programs, target, options, calibrator, lambda _: None)[0])
        graph = denoiser(programs[0])
        assert graph is not None
        scales = [programs[0]] if len(graph.inputs) > len(self.held_out.of(graph)[0].feeds) else []
        outputs = _outputs(graph, self.held_out, scales)
        return [sqnr(a.numpy(), b.numpy()) for a, b in zip(outputs, self.references, strict=True)]


def _outputs(graph: Graph, held_out: Calibration, scaled: Sequence[Program]) -> Iterator[torch.Tensor]:
    """Run the samples of a graph; where it has step-indexed scales, the program knows those of each call."""
    module = body_of(graph)
    materialize(module)
    rows = {table.name: table.data for program in scaled for table in program.tables}
    split = [op for program in scaled for op in program.ops if any("_scale_" in v.name for v in op.results)]
    table = [rows[name] for op in split for name in op.reads()]
    with torch.no_grad():
        for sample in held_out.of(graph):
            scales = [torch.from_numpy(np.asarray(each)[sample.step : sample.step + 1]) for each in table[:1]]
            yield module(*sample.feeds, *scales)[0]


def table(model: str, measurements: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[str]:
    """Write the rows of one model, in the order of `TECHNIQUES`."""
    yield from (f"## {model}", "", "| target | `--quant` | mean | worst call |", "|---|---|---|---|")
    for precision, compared in TECHNIQUES.items():
        for techniques in compared:
            if techniques in measurements.get(precision, {}):
                mean, worst = measurements[precision][techniques]
                yield f"| {precision} | `{techniques}` | {mean:.1f} dB | {worst:.1f} dB |"
    yield ""


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--precision", choices=TECHNIQUES, action="append")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where rows are kept")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    stored = options.work / "techniques.json"
    measurements: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    for name in options.model or MODELS:
        rows = measurements.setdefault(name, {})
        requested = [(each, how) for each in options.precision or TECHNIQUES for how in TECHNIQUES[each]]
        missing = [(each, how) for each, how in requested if how not in rows.get(each, {})]
        model = Model.of(MODELS[name]) if missing else None
        for precision, techniques in missing:
            assert model is not None
            errors = model.errors(precision, techniques)
            rows.setdefault(precision, {})[techniques] = float(np.mean(errors)), min(errors)
            print(name, precision, techniques, *rows[precision][techniques], flush=True)
            stored.write_text(json.dumps(measurements, indent=1))
    PAGE.write_text(HEAD + "\n".join(line for name, rows in measurements.items() for line in table(name, rows)))


HEAD = """# What each technique wins

The error of one call of the denoiser against float32, as ratio of signal to error in dB, over all calls of three
held-out prompts (`make techniques`): 20 steps, guidance 5. What a row does not name is done by `calibrate_ranges` and
`round_to_nearest`. The recipe of each target is the best row that keeps the bundle small and runs on integers:
`svdquant` wins most at four bits, but its branches are of the size of the weights in models as small as these.

`static` is what most papers begin with: one scale for each channel of a weight, and one scale and zero point for all
of an activation; of `fp4` these are weights of e2m1 and activations of eight bits, as FP-quant has them.

"""

if __name__ == "__main__":
    main()
