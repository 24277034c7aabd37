"""Trace, capture and stage whole models of today without their weights; ``make whole-models`` writes the page.

Each is a checkpoint's folder with holes for weights (`checkpoints.no_values`), which `diffc estimate` and the
phases of `diffc build` read as they read any other. A process of its own measures the memory of each.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers

from benchmarks import published
from benchmarks.checkpoints import Described, no_values, write
from benchmarks.stages import shares
from diffc.compiler.analysis.stages import denoiser
from diffc.compiler.checkpoint.load import load
from diffc.compiler.commands.estimate import estimate
from diffc.compiler.driver.options import read_options
from diffc.compiler.driver.phases import capture, normalize, stage, trace
from diffc.compiler.driver.state import State, run_phases
from diffc.compiler.errors import DiffcError
from diffc.runtime.memory import peak_bytes

PAGE = Path(__file__).parent.parent / "docs" / "measured" / "whole_models.md"
TARGET = "ort-bf16"


@dataclass(frozen=True)
class Model:
    """Describe a checkpoint, the options of its build, and what is said of them."""

    describe: Callable[[], Described]
    request: str
    options: dict[str, Any]


MODELS = {
    "FLUX.2-klein-4B": Model(published.flux_2_klein, "1024×1024, 4 steps", {"steps": [4]}),
    "FLUX.2-dev": Model(published.flux_2_dev, "1024×1024, 20 steps", {"steps": [20]}),
    "Z-Image": Model(published.z_image, "1024×1024, 20 steps", {"steps": [20]}),
    "HiDream-I1": Model(published.hidream, "1024×1024, 20 steps", {"steps": [20]}),
    "HunyuanVideo 1.5": Model(
        published.hunyuan_video_1_5, "480p, 61 images, 20 steps", {"steps": [20], "options": {"num_frames": 61}}
    ),
    "LTX-2": Model(published.ltx_2, "768×512, 121 images and audio, 20 steps", {"steps": [20]}),
}


def row(name: str, model: Model) -> str:
    """Measure one model; one that is refused has a row that says so."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        write(source, model.describe, no_values)
        expected = estimate(source, TARGET)
        parameters = sum(expected["parameters"].values())
        cells = [name, model.request, f"{parameters / 1e9:.1f} B", f"{expected['bundle_bytes'] / 1e9:.0f} GB"]
        start = time.monotonic()
        try:
            cells += captured(load(source, lazy_weights=True), model, Path(folder))
        except DiffcError as error:
            cells += [f"refused: {error.what}".replace("|", "\\|"), *["—"] * 7]
        cells += [f"{time.monotonic() - start:.0f} s", f"{peak_bytes() / 1e9:.1f} GB"]
    return f"| {' | '.join(cells)} |"


def captured(pipeline: Any, model: Model, folder: Path) -> list[str]:
    """Run the phases of a build up to staged programs; return the cells of `shares`."""
    options = read_options(TARGET, **model.options)
    loaded = State(options, folder, progress=shown, pipeline=pipeline, components=pipeline.components)
    state = run_phases(loaded, [trace, capture, normalize])
    graph = denoiser(state.programs[0])
    assert graph is not None, "a pipeline of these has a denoiser"
    cells = shares(graph, state.programs)
    run_phases(state, [stage])
    return cells


def shown(message: str) -> None:
    """Print what a build is about to do."""
    print(f"  {message}", file=sys.stderr, flush=True)


COLUMNS = (
    *("model", "request", "parameters", "bundle", "denoiser", "step", "request", "both"),
    *("leave", "work", "tables", "kept", "time", "memory"),
)
HEAD = f"""# Whole models of today

Pipelines of diffusers {diffusers.__version__} with the published sizes of all their components and no weights: a
checkpoint's folder with holes, which diffc loads, traces, captures, brings into normal form and stages as in any build.
`make whole-models` writes this page, model by model; `benchmarks/published.py` has the configurations and their
sources. The tokenizers are small ones of the same kinds.

*Bundle* is what `diffc estimate --target {TARGET}` says. The next columns are of the denoiser, as in
[stages](stages.md): parameters, the share that the step, the request, or both need first, the share that *leaves* the
loop, the *work* of a call that is saved, *tables* in the bundle and values *kept* during a run. *Time* is from load to
stage, and *memory* the peak of the process, imports (0.5 GB) among it: two cores that six other jobs shared.

| {" | ".join(COLUMNS)} |
{"|---" * len(COLUMNS)}|
"""

ABSENT = """
Not here: the pipeline of Qwen-Image-2.1, whose `Qwen3VLProcessor` needs torchvision, and that of Kolors, which needs
sentencepiece; neither was installed. [Stages](stages.md) has the denoiser of Kolors.
"""


def main() -> None:
    """Write the page, or print the rows of some models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="only these, printed")
    models = parser.parse_args().models
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if models:
        for name in models:
            print(row(name, MODELS[name]), flush=True)
    else:
        rows = [measured_alone(name) for name in MODELS]
        PAGE.write_text(HEAD + "\n".join(rows) + "\n" + ABSENT, encoding="utf-8")


def measured_alone(name: str) -> str:
    """Measure one model in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.whole_models", name]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
