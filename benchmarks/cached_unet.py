"""Measure what DeepCache saves in an SD 1.5-sized UNet: its time in a whole run, the bundle, and the peak memory.

Builds two bundles on the command line from random weights, one with a cache, and draws with each in a process of its
own. The time is that of all calls of the denoiser's graphs.

    make bench-cache
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.build import MODELS, ROOT
from benchmarks.checkpoints import write
from diffc.runtime import load
from diffc.runtime.interpreter import Interpreter
from diffc.runtime.memory import peak_bytes

CACHES = ("none", "deepcache:interval=5,branch=0")
COMPONENT = "unet"


def draw(bundle: Path) -> dict[str, float]:
    """Draw once; give the seconds in the denoiser, those of the whole run, and the peak memory."""
    seconds, computed = 0.0, Interpreter._computed

    def timed(self: Interpreter, graph: Any, *rest: Any) -> Any:
        nonlocal seconds
        self.session(graph)  # opened before its time is taken
        start = time.perf_counter()
        outputs = computed(self, graph, *rest)
        of = self.bundle.manifest.component(graph.name)
        seconds += (time.perf_counter() - start) * (of == COMPONENT)
        return outputs

    Interpreter._computed = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    load(bundle)("a cat", seed=0, output="np")
    return {"denoiser": seconds, "whole": time.perf_counter() - start, "peak_mb": peak_bytes() / 1e6}


def compare(options: argparse.Namespace) -> dict[str, Mapping[str, float]]:
    """Build what is missing, and draw in turns."""
    options.work.mkdir(parents=True, exist_ok=True)
    source, diffc = options.work / "sd15", str(Path(sys.executable).with_name("diffc"))
    if not source.exists():
        write(source, MODELS["sd15"].describe)
    measurements: dict[str, Mapping[str, float]] = {}
    for cache in CACHES:
        bundle = options.work / f"{cache.partition(':')[0]}-{options.steps}.diffc"
        if not bundle.exists():
            command = [diffc, "build", str(source), "--steps", str(options.steps), "--cache", cache, "-o", str(bundle)]
            subprocess.run(command, check=True)
        size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        turns = []
        for _ in range(options.rounds):
            command = [sys.executable, "-m", "benchmarks.cached_unet", "--draw", str(bundle)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            turns.append(json.loads(done.stdout.splitlines()[-1]))
            print(cache, turns[-1], file=sys.stderr, flush=True)
        measurements[cache] = {name: min(turn[name] for turn in turns) for name in turns[0]} | {"bytes": size}
    return measurements


def table(measurements: Mapping[str, Mapping[str, float]]) -> str:
    """Lay the measurements out, with ratios to no cache."""
    baseline = measurements[CACHES[0]]
    lines = ["| `--cache` | denoiser, all calls | times faster | bundle | memory, peak |", "|---|---|---|---|---|"]
    for cache, row in measurements.items():
        size = f"{row['bytes'] / 1e6:.0f} MB, {row['bytes'] / baseline['bytes']:.3f} ×"
        peak = f"{row['peak_mb']:.0f} MB, {row['peak_mb'] / baseline['peak_mb']:.2f} ×"
        lines.append(
            f"| {cache} | {row['denoiser']:.1f} s | {baseline['denoiser'] / row['denoiser']:.2f} | {size} | {peak} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where checkpoint and bundles lie")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--draw", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(json.dumps(draw(options.draw)) if options.draw else table(compare(options)))


if __name__ == "__main__":
    main()
