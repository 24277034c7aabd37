"""Measure a bundle's time and memory, in turns with rivals: everyone draws the same in a fresh process each turn."""

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
from typing import IO, Any

from diffc.compiler.bundle.provenance import arguments_of
from diffc.compiler.errors import BuildError, DiffcError, Progress
from diffc.runtime.bundle.open import Bundle, open_bundle
from diffc.runtime.request import Request, make_request

BUNDLE = "diffc"

WARM = 2
"""How many times each process draws after the first."""


@dataclass(frozen=True)
class Contender:
    """Name the module that reports as `diffc.runtime.bench_process` says, and the packages that it needs."""

    module: str
    packages: tuple[str, ...] = ()


CONTENDERS = {
    BUNDLE: Contender("diffc.runtime.bench_process"),
    "torch": Contender(
        "diffc.compiler.commands.bench_diffusers", ("torch", "diffusers", "transformers", "accelerate", "safetensors")
    ),
}


@dataclass(frozen=True)
class Turn:
    """Hold what one process took: seconds from its start to the first picture, then once warm, and its peak memory.

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
    prompt: str = "a red circle left of a blue square",
    seed: int = 0,
    guidance: float | None = None,
    program: str | None = None,
    threads: int | None = None,
    repeat: int = 3,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Let the bundle and each rival take ``repeat`` turns, one after the other, with as many threads (default: all).

    The only rival is ``torch``: the diffusers pipeline that the bundle was built from, of ``source``, in float32. Warm
    requests have prompts of their own, so that nobody gains from remembering one. Gives what was asked for, the medians
    of each of the ``contenders`` and, of each rival, ``ratios``: above 1 where the bundle takes less.
    Raises `DiffcError` where the request cannot be served or a contender fails.
    """
    _check_rivals(against, source)
    opened = open_bundle(Path(bundle))
    given = {"prompt": prompt, "guidance_scale": guidance}
    reads_prompt = any(item.name == "prompt" for each in opened.programs.values() for item in each.texts)
    given = given if reads_prompt else {"guidance_scale": guidance}
    request = make_request(opened.programs, program=program, inputs=given, num_images=1, seed=seed, latents=None)
    chosen = request.program
    texts: list[list[str] | str] = [
        [text] * chosen.batch if reads_prompt else "" for text in (prompt, *(f"{n} {prompt}" for n in range(WARM)))
    ]
    common = {"texts": texts, "seed": seed, "threads": threads or _cores()}
    requests = {BUNDLE: common | {"bundle": str(bundle), "program": chosen.name, "scalars": dict(request.scalars)}}
    for rival in against:
        requests[rival] = common | {"source": str(source)} | _asked_of_pipeline(opened, request)
    turns: dict[str, list[Turn]] = {name: [] for name in requests}
    for number in range(repeat):
        for name, asked in requests.items():
            progress(f"turn {number + 1}/{repeat}: {name}")
            turns[name].append(take_turn(name, asked))
    said = {"program": chosen.name, "prompt": prompt, "seed": seed, **request.scalars}
    said |= {"steps": sum(op.operator == "step" for op in chosen.ops), "batch": chosen.batch}
    said |= {"threads": common["threads"], "repeat": repeat}
    return {"bundle": str(bundle), **said, **compared(turns, chosen.batch)}


def compared(turns: Mapping[str, Sequence[Turn]], batch: int = 1) -> dict[str, Any]:
    """Give each contender's medians, and how many times as much as the bundle each rival takes."""
    contenders = {name: _medians(each, batch) for name, each in turns.items()}
    own = contenders[BUNDLE]
    return {
        "contenders": contenders,
        "ratios": {
            rival: {key: _ratio(value, own[key]) for key, value in found.items()}
            for rival, found in contenders.items()
            if rival != BUNDLE
        },
    }


def _ratio(value: float | None, own: float | None) -> float | None:
    return value / own if value and own else None


def _medians(turns: Sequence[Turn], batch: int) -> dict[str, float | None]:
    steps = [seconds for turn in turns for seconds in turn.steps]
    return {
        "first_seconds": statistics.median(turn.first_seconds for turn in turns),
        "seconds": statistics.median(seconds for turn in turns for seconds in turn.seconds) / batch,
        "step_milliseconds": statistics.median(steps) * 1000 if steps else None,
        "peak_bytes": round(statistics.median(turn.peak_bytes for turn in turns)),
    }


def table(found: Mapping[str, Any]) -> str:
    """Lay the medians out for people, a line for each contender, then one for the ratios of each rival."""
    lines = [("", "first picture", "picture, warm", "step", "peak")]
    for name, row in found["contenders"].items():
        step = "" if row["step_milliseconds"] is None else f"{row['step_milliseconds']:.1f} ms"
        first, warm, peak = (
            f"{row['first_seconds']:.2f} s",
            f"{row['seconds']:.2f} s",
            f"{row['peak_bytes'] / 1e6:.0f} MB",
        )
        lines.append((name, first, warm, step, peak))
    for rival, row in found["ratios"].items():
        first, warm, step, peak = ("" if value is None else f"{value:.2f} ×" for value in row.values())
        lines.append((f"{rival} / {BUNDLE}", first, warm, step, peak))
    return "\n".join("".join(f"{cell:>15}" for cell in line) for line in lines)


def _check_rivals(against: Sequence[str], source: Path | str | None) -> None:
    known = [name for name in CONTENDERS if name != BUNDLE]
    for rival in against:
        if rival not in known:
            raise BuildError(f"unknown rival {rival!r}", where="--against", fix=f"name one of {', '.join(known)}")
        missing = [name for name in CONTENDERS[rival].packages if importlib.util.find_spec(name) is None]
        if missing:
            what = f"the rival {rival} needs {', '.join(missing)}, not installed here"
            raise BuildError(what, where="--against", fix="pip install 'diffc[compiler]'")
        if source is None:
            what = f"the rival {rival} draws with what the bundle was built from"
            raise BuildError(what, where="--against", fix="name it with --source")
        if not Path(source).exists():
            raise BuildError(f"there is no {source}", where="--source", fix="name what the bundle was built from")


def _asked_of_pipeline(bundle: Bundle, request: Request) -> dict[str, Any]:
    """Say what the pipeline draws where the bundle answers the request."""
    recipe = bundle.manifest.raw["provenance"]["recipe"]
    arguments = arguments_of(request.program.name, recipe) | dict(request.scalars)
    arguments |= {item.name: [""] * request.program.batch for item in request.program.texts if item.name != "prompt"}
    return {"sampler": recipe["sampler"], "task": recipe["task"], "arguments": arguments}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def take_turn(name: str, request: Mapping[str, Any]) -> Turn:
    """Let a contender draw in a fresh process. Raises `DiffcError` with what it says, or its last line on stderr."""
    command = [sys.executable, "-P", "-m", CONTENDERS[name].module, json.dumps(request)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        lines = _lines(command, errors)
        errors.seek(0)
        said = errors.read().strip().rpartition("\n")[2]
    found = [line for _, line in lines]
    if found and "error" in found[-1]:
        error = found[-1]["error"]
        raise DiffcError(error["what"], where=error["where"] or name, fix=error["fix"])
    if not found or "peak_bytes" not in found[-1]:
        raise BuildError(f"{name} failed: {said or 'its process was killed'}", fix="see whether there is memory enough")
    warm = found[1:-1]
    seconds = tuple(each["seconds"] for each in warm)
    steps = tuple(step for each in warm for step in each["steps"])
    return Turn(lines[0][0], seconds, steps, found[-1]["peak_bytes"])


def _lines(command: Sequence[str], errors: IO[str]) -> list[tuple[float, dict[str, Any]]]:
    """Run a command and give each line of JSON that it prints, with the seconds since its start."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        assert process.stdout is not None
        try:
            return [(time.perf_counter() - start, json.loads(line)) for line in process.stdout]
        except BaseException:
            process.kill()
            raise
