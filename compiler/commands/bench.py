"""Measure the time and memory of a bundle and of baselines, alternately, in a fresh process for each measurement."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from diffc.compiler.bundle.provenance import arguments_of, check_component_files, facts_of
from diffc.compiler.errors import BuildError, DiffcError, Progress
from diffc.runtime.bundle.open import Bundle, open_bundle
from diffc.runtime.request import Request, make_request

BUNDLE = "diffc"

WARM = 2
"""Requests of each process after the first."""


@dataclass(frozen=True)
class Subject:
    """Name a module that prints results as `diffc.runtime.bench_process` does, and the packages that it needs."""

    module: str
    packages: tuple[str, ...] = ()


BASELINES = {
    "torch": Subject(
        "diffc.compiler.commands.bench_diffusers", ("torch", "diffusers", "transformers", "accelerate", "safetensors")
    ),
}
SUBJECTS = {BUNDLE: Subject("diffc.runtime.bench_process"), **BASELINES}


@dataclass(frozen=True)
class Measurement:
    """Hold the results of one process: seconds from its start to the first image, then once warm, and its peak memory.

    ``seconds`` has one entry for each warm request, ``steps`` one for each warm step but the first of a request.
    """

    first_seconds: float
    seconds: tuple[float, ...]
    steps: tuple[float, ...]
    peak_bytes: int


def bench(
    bundle: Path | str,
    *,
    against: Sequence[str] = (),
    source: Path | str | None = None,
    component_files: Mapping[str, Path | str] = MappingProxyType({}),
    prompt: str = "a red circle left of a blue square",
    seed: int = 0,
    guidance: float | None = None,
    program: str | None = None,
    threads: int | None = None,
    repeat: int = 3,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure the bundle and the baselines ``against`` it alternately, ``repeat`` times, with ``threads`` or all cores.

    The only baseline is ``torch``: the diffusers pipeline that the bundle was built from, loaded from ``source`` and
    ``component_files``, in float32. Each warm request has a prompt of its own, so that no cached text embedding counts.
    Returns the options, the ``medians`` of each (``contenders`` is the same under its old name) and, of each baseline,
    ``ratios`` to the bundle: above 1 where the bundle takes less. Raises `DiffcError` where the request cannot be
    served or a process fails.
    """
    _check_baselines(against, source)
    opened = open_bundle(Path(bundle))
    reads_prompt = any(item.name == "prompt" for each in opened.programs.values() for item in each.texts)
    inputs = {"guidance_scale": guidance} | ({"prompt": prompt} if reads_prompt else {})
    request = make_request(opened.programs, program=program, inputs=inputs, num_images=1, seed=seed, latents=None)
    measured = request.program
    texts: list[list[str] | str] = [
        [text] * measured.batch if reads_prompt else "" for text in (prompt, *(f"{n} {prompt}" for n in range(WARM)))
    ]
    common = {"texts": texts, "seed": seed, "threads": threads or _cores()}
    requests = {BUNDLE: common | {"bundle": str(bundle), "program": measured.name, "scalars": dict(request.scalars)}}
    for baseline in against:
        requests[baseline] = common | _pipeline_options(opened, request, source, component_files)
    measurements: dict[str, list[Measurement]] = {name: [] for name in requests}
    for number in range(repeat):
        for name, options in requests.items():
            progress(f"repeat {number + 1}/{repeat}: {name}")
            measurements[name].append(measure(name, options))
    result = {"program": measured.name, "prompt": prompt, "seed": seed, **request.scalars}
    result |= {"steps": sum(op.operator == "step" for op in measured.ops), "batch": measured.batch}
    result |= {"threads": common["threads"], "repeat": repeat}
    return {"bundle": str(bundle), **result, **compared(measurements, measured.batch)}


def compared(measurements: Mapping[str, Sequence[Measurement]], batch: int = 1) -> dict[str, Any]:
    """Compute the medians of the bundle and of each baseline, and the ratios of each baseline's to the bundle's."""
    medians = {name: _medians(repeats, batch) for name, repeats in measurements.items()}
    ratios = {
        name: {key: _ratio(value, medians[BUNDLE][key]) for key, value in row.items()}
        for name, row in medians.items()
        if name != BUNDLE
    }
    return {"medians": medians, "contenders": medians, "ratios": ratios}


def _ratio(value: float | None, bundle: float | None) -> float | None:
    return value / bundle if value and bundle else None


def _medians(repeats: Sequence[Measurement], batch: int) -> dict[str, float | None]:
    steps = [seconds for each in repeats for seconds in each.steps]
    return {
        "first_seconds": statistics.median(each.first_seconds for each in repeats),
        "seconds": statistics.median(seconds for each in repeats for seconds in each.seconds) / batch,
        "step_milliseconds": statistics.median(steps) * 1000 if steps else None,
        "peak_bytes": round(statistics.median(each.peak_bytes for each in repeats)),
    }


def table(result: Mapping[str, Any]) -> str:
    """Format the medians as a table, a line for each name, then a line for the ratios of each baseline."""
    lines = [("", "first image", "image, warm", "step", "peak")]
    for name, row in result["medians"].items():
        step = "" if row["step_milliseconds"] is None else f"{row['step_milliseconds']:.1f} ms"
        first, warm, peak = (
            f"{row['first_seconds']:.2f} s",
            f"{row['seconds']:.2f} s",
            f"{row['peak_bytes'] / 1e6:.0f} MB",
        )
        lines.append((name, first, warm, step, peak))
    for name, row in result["ratios"].items():
        first, warm, step, peak = ("" if value is None else f"{value:.2f} ×" for value in row.values())
        lines.append((f"{name} / {BUNDLE}", first, warm, step, peak))
    return "\n".join("".join(f"{cell:>15}" for cell in line) for line in lines)


def _check_baselines(against: Sequence[str], source: Path | str | None) -> None:
    for name in against:
        if name not in BASELINES:
            fix = f"name one of {', '.join(BASELINES)}"
            raise BuildError(f"unknown baseline {name!r}", where="--against", fix=fix)
        missing = [package for package in BASELINES[name].packages if importlib.util.find_spec(package) is None]
        if missing:
            what = f"the baseline {name} needs {', '.join(missing)}, not installed here"
            raise BuildError(what, where="--against", fix="pip install 'diffc[compiler]'")
        if source is None:
            what = f"the baseline {name} needs the checkpoint that the bundle was built from"
            raise BuildError(what, where="--against", fix="name it with --source")
        if not Path(source).exists():
            raise BuildError(f"there is no {source}", where="--source", fix="name the checkpoint of the bundle")


def _pipeline_options(
    bundle: Bundle, request: Request, source: Path | str | None, component_files: Mapping[str, Path | str]
) -> dict[str, Any]:
    """Return the options with which the pipeline is loaded and samples as the bundle does for the request."""
    recipe = bundle.manifest.raw["provenance"]["recipe"]
    check_component_files(recipe, component_files, bundle.path)
    arguments = arguments_of(facts_of(bundle.manifest.facts, request.program.name), recipe) | dict(request.scalars)
    arguments |= {item.name: [""] * request.program.batch for item in request.program.texts if item.name != "prompt"}
    files = {name: str(path) for name, path in component_files.items()}
    loaded = {"source": str(source), "component_files": files, "sampler": recipe["sampler"], "task": recipe["task"]}
    return loaded | {"arguments": arguments}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(name: str, request: Mapping[str, Any]) -> Measurement:
    """Measure the bundle or a baseline in a fresh process.

    Raises `DiffcError` with the error that the process reports, or else with its last line on stderr.
    """
    command = [sys.executable, "-P", "-m", SUBJECTS[name].module, json.dumps(request)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        lines = _lines(command, errors)
        errors.seek(0)
        last_error = errors.read().strip().rpartition("\n")[2]
    results = [line for _, line in lines]
    if results and "error" in results[-1]:
        error = results[-1]["error"]
        raise DiffcError(error["what"], where=error["where"] or name, fix=error["fix"])
    if not results or "peak_bytes" not in results[-1]:
        what = f"{name} failed: {last_error or 'its process was killed'}"
        raise BuildError(what, fix="see whether there is memory enough")
    warm = results[1:-1]
    seconds = tuple(each["seconds"] for each in warm)
    steps = tuple(step for each in warm for step in each["steps"])
    return Measurement(lines[0][0], seconds, steps, results[-1]["peak_bytes"])


def _lines(command: Sequence[str], errors: IO[str]) -> list[tuple[float, dict[str, Any]]]:
    """Run a command and return each line of JSON that it prints, with the seconds since its start."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        assert process.stdout is not None
        try:
            return [(time.perf_counter() - start, json.loads(line)) for line in process.stdout]
        except BaseException:
            process.kill()
            raise
