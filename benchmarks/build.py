"""Measure what a build takes: memory beyond the imports, time and disk, for models of the sizes that people have.

Writes checkpoints with random weights, slice after slice, then builds each in a process of its own. The rival, for
what fits, loads the pipeline with diffusers in float32 and exports its components with ``torch.onnx.export``. Prints a
table, or with ``--json`` an object. The folders stay below ``--work``, to be used again; the bundles do not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import flux, sd15, write

ROOT = Path(__file__).parent.parent

MEASURED = """
import importlib, json, sys, time
from pathlib import Path
from diffc.compiler.driver import build
from diffc.compiler.backends import ort
def megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
index = json.loads((Path(sys.argv[1]) / "model_index.json").read_text())
for library, kind in [pair for pair in index.values() if isinstance(pair, list) and pair[0]]:
    getattr(importlib.import_module(library), kind)
getattr(importlib.import_module("diffusers"), index["_class_name"])
before, start = megabytes("VmRSS:"), time.monotonic()
{work}
print(json.dumps({{"imports": before, "peak": megabytes("VmHWM:"), "seconds": time.monotonic() - start}}))
"""

DIFFC = """
build.build(sys.argv[1], sys.argv[3], sys.argv[2], steps=[2], progress=lambda what: print(what, file=sys.stderr))
"""

BASELINE = """
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32, local_files_only=True)
folder = Path(sys.argv[2])
folder.mkdir()
class Decode(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae
    def forward(self, latents):
        return self.vae.decode(latents).sample
ids = torch.zeros(1, 77, dtype=torch.long)
parts = {
    "text_encoder": (pipeline.text_encoder, (ids,)),
    "unet": (pipeline.unet, (torch.zeros(2, 4, 64, 64), torch.tensor(1), torch.zeros(2, 77, 768))),
    "vae_decode": (Decode(pipeline.vae), (torch.zeros(1, 4, 64, 64),)),
}
for name, (module, example) in parts.items():
    with torch.no_grad():
        torch.onnx.export(module.eval(), example, folder / f"{name}.onnx", dynamo=True, external_data=True)
"""


# Checkpoints


@dataclass(frozen=True)
class Model:
    """Describe how a checkpoint is made, its target, and whether the baseline fits into 24 GB of memory."""

    title: str
    describe: Callable[[], tuple[type, dict[str, Any], torch.dtype]]
    target: str
    has_baseline: bool = False


MODELS = {
    "sd15": Model("SD 1.5", sd15, "ort-fp32", has_baseline=True),
    "flux-quarter": Model("FLUX.1-dev, a quarter of its blocks", lambda: flux(5, 9), "ort-bf16"),
    "flux": Model("FLUX.1-dev", flux, "ort-bf16"),
}


# Measurements


def size(folder: Path) -> int:
    """Add up the files of a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def vanishing(folder: Path) -> Iterator[Path]:
    """Yield the name of a folder, and remove the folder before and after."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measured(work: str, source: Path, output: Path, target: str) -> dict[str, float]:
    """Run a piece of work in a process of its own, without a cache; return MB beyond the imports, and seconds."""
    command = [sys.executable, "-c", MEASURED.format(work=work), str(source), str(output), target]
    with vanishing(output.with_suffix(".cache")) as cache:
        environment = os.environ | {"DIFFC_CACHE": str(cache)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    measurements = json.loads(done.stdout.splitlines()[-1])
    measurements |= {
        "megabytes": measurements["peak"] - measurements["imports"],
        "source": size(source),
        "bundle": size(output),
    }
    return dict(measurements)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where the checkpoints lie")
    parser.add_argument("--models", default="sd15,flux", help=f"which of {', '.join(MODELS)}")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    measurements: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.models.split(","):
        model, source = MODELS[name], options.work / name
        if not source.exists():
            write(source, model.describe)
        measurements[name] = {}
        for by, work in {"diffc": DIFFC, "torch.onnx": BASELINE}.items():
            if by == "diffc" or model.has_baseline:
                with vanishing(options.work / f"{name}.{by}") as output:
                    measurements[name][by] = measured(work, source, output, model.target)
    print(json.dumps(measurements, indent=1) if options.json else table(measurements))


def table(measurements: dict[str, dict[str, dict[str, float]]]) -> str:
    """Lay the measurements out."""
    lines = ["| model | by | target | checkpoint | bundle | memory beyond the imports | time |", "|---" * 7 + "|"]
    for name, rows in measurements.items():
        for by, row in rows.items():
            sizes = (
                f"{row['source'] / 1e9:.1f} GB | {row['bundle'] / 1e9:.1f} GB | {row['megabytes'] * 1.048576:.0f} MB"
            )
            target = MODELS[name].target if by == "diffc" else "float32"
            lines.append(f"| {MODELS[name].title} | {by} | {target} | {sizes} | {row['seconds']:.0f} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
