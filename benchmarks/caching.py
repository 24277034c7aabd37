"""Measure what caches of features save and cost on the example models: time, fidelity and attributes.

Each row is a bundle that the command line builds. The same held-out captions are drawn with it and with the fp32 bundle
without a cache, from the same seeds; some of them in turns, for the time. With a target of few bits, its row without a
cache says what is lost by quantization alone, and the fp32 row what by the cache alone.

    make caching                            # all rows of docs/measured/caching.md
    python -m benchmarks.caching --model shapes-unet --cache deepcache:interval=4
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.quantization import MODELS, ROOT, Row, built, measured, reference_pictures
from diffc.runtime import load

PAGE = ROOT / "docs" / "measured" / "caching.md"

TIMED = 6
"""How many captions are drawn in turns with and without a cache."""

SYSTEMS = {
    "shapes-unet": (
        *(f"deepcache:interval={n}" for n in (2, 3, 5, 10)),
        "deepcache:interval=3,branch=1",
        "deepcache:interval=5,schedule=quadratic",
        "faster-diffusion",
        "a-sdm",
        "a-sdm:level=block",
        "cachequant",
        "auto:max-drop=0.5dB",
        "auto:max-drop=2dB",
        "auto:max-drop=6dB",
    ),
    "shapes-dit": (
        "delta-dit:interval=2",
        "delta-dit:interval=3",
        "profiling-dit:share=0.5",
        "a-sdm",
        "cachequant",
        "auto:max-drop=0.5dB",
        "auto:max-drop=2dB",
        "auto:max-drop=6dB",
    ),
}
"""The caches of docs/measured/caching.md, at their published settings and around them."""

TOGETHER = {"shapes-unet": "deepcache:interval=2", "shapes-dit": "delta-dit:interval=2"}
"""What is measured with few bits as well."""


def rows(model: str) -> Iterator[Row]:
    """List the rows of a model."""
    yield from (Row("ort-fp32", cache=cache) for cache in SYSTEMS[model])
    for target in ("ort-w8a8", "ort-w4a8"):
        yield from (Row(target), Row(target, cache=TOGETHER[model]))


def speed(bundle: Path, baseline: Path, threads: int) -> float:
    """Measure, in turns, how many times faster than a baseline a bundle samples."""
    samplers, seconds = [load(path, threads=threads) for path in (bundle, baseline)], [0.0, 0.0]
    for turn in range(TIMED + 1):
        for at, sampler in enumerate(samplers):
            start = time.perf_counter()
            sampler("a red circle left of a blue square", seed=turn, output="np")
            seconds[at] += (time.perf_counter() - start) * bool(turn)  # the first turn opens the engines
    return seconds[1] / seconds[0]


def table(model: str, measurements: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Write the rows of one model as a table."""
    yield f"## {model}"
    yield ""
    yield "| target | `--cache` | speed | PSNR, mean | of the mean error | attributes | bundle |"
    yield "|---|---|---|---|---|---|---|"
    baseline = measurements["ort-fp32"]
    for key, row in measurements.items():
        target, _, cache = key.partition(" ")
        size = f"{row['bytes'] / baseline['bytes']:.3f} ×"
        near = f"{row['psnr']:.1f} dB | {row['of_mean_error']:.1f} dB" if key != "ort-fp32" else " | "
        how = f"`{cache}`" if cache else ""
        yield f"| {target} | {how} | {row['speed']:.2f} × | {near} | {row['attributes']:.1%} | {size} |"
    yield ""


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "caching")
    parser.add_argument("--cache", help="measure this one alone")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    measurements: dict[str, dict[str, Any]] = {}
    for model in options.model or MODELS:
        stored = options.work / f"caching-{model}-{options.captions}.json"
        measurements[model] = of_model = json.loads(stored.read_text()) if stored.exists() else {}
        reference = reference_pictures(model, options)
        plain = built(model, Row("ort-fp32"), options.work)[0]
        for row in (Row("ort-fp32"), *([Row("ort-fp32", cache=options.cache)] if options.cache else rows(model))):
            if row.key not in of_model:
                of_model[row.key] = measured(model, row, options, reference)
                of_model[row.key]["speed"] = speed(built(model, row, options.work)[0], plain, options.threads)
                stored.write_text(json.dumps(of_model, indent=1))
            print(model, row.key, json.dumps(of_model[row.key]), flush=True)
    if options.cache is None and options.model is None:
        text = [line for model, of_model in measurements.items() for line in table(model, of_model)]
        PAGE.write_text(f"{HEAD.format(captions=options.captions, timed=TIMED)}\n" + "\n".join(text))


HEAD = """# What caches of features save and cost

Both example models, {captions} held-out captions, 20 steps, guidance 5, against the fp32 bundle without a cache from
the same seeds (`make caching`). Speed is that of whole pictures, text encoder and decoder included, {timed} drawn in
turns with that bundle. PSNR is the mean of each picture's, and that of the mean squared error over all pictures.
"""


if __name__ == "__main__":
    main()
