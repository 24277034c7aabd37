"""Measure what quantization costs on the example models: fidelity, attributes, size and the time to build.

Each row is a bundle that the command line builds. The same held-out captions are drawn with it and with the fp32
bundle, from the same seeds; PSNR is between the two, the attributes are judged by the examples' checker. Rows that are
measured are kept in a file, so that a run that was interrupted goes on; the pages are written from it.

    make quantization                       # all rows of docs/measured/quantization.md
    python -m benchmarks.quantization --model shapes-unet --only ort-w4a8
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffc.compiler.metrics import psnr
from diffc.runtime import load

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples" / "models"))

MODELS = {
    "shapes-unet": ROOT / "examples" / "models" / "shapes-unet.safetensors",
    "shapes-dit": ROOT / "examples" / "models" / "shapes-dit",
}
STEPS, GUIDANCE, BATCH = 20, 5.0, 20
PAGE = ROOT / "docs" / "measured" / "quantization.md"

Pictures = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """Name a target and the options with which it is built."""

    target: str
    quant: str = ""
    recipe: str = ""
    cache: str = ""

    @property
    def key(self) -> str:
        """Return the key of a row, unique on the page."""
        return " ".join(part for part in (self.target, self.quant, self.recipe, self.cache) if part)


ROWS = (
    Row("ort-w8a8"),
    Row("ov-w8a8"),
    Row("ort-w4a8"),
    Row("ort-w4a8", "round_to_nearest"),
    Row("ort-w4a4"),
    Row("ort-w4a4", "round_to_nearest"),
    Row("ort-fp8"),
    Row("ort-fp4"),
    Row("ort-fp4", "round_to_nearest"),
    Row("ort-w4a16"),
)


def built(model: str, row: Row, folder: Path) -> tuple[Path, float]:
    """Build a bundle; give its path and the seconds that it took."""
    output = folder / f"{model} {row.key}.diffc".replace(" ", "_").replace(":", "_")
    if output.exists():
        return output, float("nan")
    command = [str(Path(sys.executable).with_name("diffc")), "build", str(MODELS[model]), "--target", row.target]
    command += ["--steps", str(STEPS), "--guidance", str(GUIDANCE), "-o", str(output)]
    if row.quant:
        command += ["--quant", row.quant]
    if row.cache:
        command += ["--cache", row.cache]
    if row.recipe:
        file = output.with_suffix(".toml")
        file.write_text(row.recipe)
        command += ["--recipe", str(file)]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, text=True)
    return output, time.monotonic() - start


def sampled(bundle: Path, captions: Sequence[str], threads: int) -> Pictures:
    """Draw each caption from noise that is seeded by its place in the list."""
    sampler = load(bundle, threads=threads)
    each = [sampler(caption, seed=at, output="np") for at, caption in enumerate(captions)]
    return np.concatenate(each)


def measured(model: str, row: Row, options: argparse.Namespace, reference: Pictures) -> dict[str, Any]:
    """Measure one row."""
    from checker import accuracy
    from shapes import held_out_scenes

    scenes = held_out_scenes(options.captions)
    bundle, seconds = built(model, row, options.work)
    start = time.monotonic()
    pictures = sampled(bundle, [scene.caption for scene in scenes], options.threads)
    each = [psnr(a, b) for a, b in zip(pictures, reference, strict=True)]
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    return {
        "psnr": float(np.mean(each)),
        "worst": float(np.min(each)),
        "of_mean_error": psnr(pictures, reference),
        "attributes": accuracy(list(pictures), scenes).overall,
        "bytes": size,
        "build_seconds": seconds,
        "draw_seconds": time.monotonic() - start,
        "captions": options.captions,
    }


def table(model: str, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Write the rows of one model as a table."""
    baseline = rows["ort-fp32"]
    yield f"## {model}"
    yield ""
    yield "| target | `--quant` | PSNR, mean | of the mean error | worst | attributes | bundle | build |"
    yield "|---|---|---|---|---|---|---|---|"
    for key, row in rows.items():
        target, _, quant = key.partition(" ")
        size = f"{row['bytes'] / 1e6:.1f} MB, {row['bytes'] / baseline['bytes']:.3f} ×"
        if key == "ort-fp32":
            yield f"| {target} | | | | | {row['attributes']:.1%} | {row['bytes'] / 1e6:.1f} MB | |"
            continue
        pictures = f"{row['psnr']:.1f} dB | {row['of_mean_error']:.1f} dB | {row['worst']:.1f} dB"
        how = f"`{quant}`" if quant else "default"
        took = "" if math.isnan(row["build_seconds"]) else f"{row['build_seconds']:.0f} s"
        yield f"| {target} | {how} | {pictures} | {row['attributes']:.1%} | {size} | {took} |"
    yield ""


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quantization")
    parser.add_argument("--only", help="a target, such as ort-w4a8")
    parser.add_argument("--quant", help="with --only: other techniques than those of the page")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    measurements: dict[str, dict[str, Any]] = {}
    rows = [row for row in ROWS if options.only in (None, row.target)]
    rows = [Row(options.only, options.quant)] if options.quant else rows
    for model in options.model or MODELS:
        stored = options.work / f"{model}-{options.captions}.json"
        measurements[model] = of_model = json.loads(stored.read_text()) if stored.exists() else {}
        reference = reference_pictures(model, options)
        for row in (Row("ort-fp32"), *rows):
            if row.key not in of_model:
                of_model[row.key] = measured(model, row, options, reference)
                stored.write_text(json.dumps(of_model, indent=1))
            print(model, row.key, json.dumps(of_model[row.key]), flush=True)
    if options.only is None and options.model is None:
        text = [line for model, of_model in measurements.items() for line in table(model, of_model)]
        PAGE.write_text(f"{HEAD.format(captions=options.captions)}\n" + "\n".join(text))


HEAD = """# What quantization costs

Both example models, {captions} held-out captions, 20 steps, guidance 5, against the fp32 bundle from the same seeds
(`make quantization`). The mean of each picture's PSNR, the PSNR of the mean squared error over all pictures, and the
worst picture. A picture that takes another turn (an object elsewhere, of another shade) has a low PSNR and may be as
right: what the captions ask for is counted by the attributes. FP8 and FP4 are computed in float32, on rounded values.
"""


def reference_pictures(model: str, options: argparse.Namespace) -> Pictures:
    """Draw the captions with the fp32 bundle, or read what was drawn before."""
    from shapes import held_out_scenes

    file = options.work / f"{model}-{options.captions}.npy"
    if not file.exists():
        bundle, _ = built(model, Row("ort-fp32"), options.work)
        np.save(file, sampled(bundle, [s.caption for s in held_out_scenes(options.captions)], options.threads))
    return np.asarray(np.load(file, allow_pickle=False))


if __name__ == "__main__":
    main()
