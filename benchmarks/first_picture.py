"""Measure the time from start to the first picture, and peak memory: a bundle against the diffusers pipeline.

Both draw the same prompt, seed, steps and guidance in a process of their own, in turns, in one run. Prints medians and
their ratio as a table, or with ``--json`` as an object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODELS = {"shapes-unet": "shapes-unet.safetensors", "shapes-dit": "shapes-dit"}
PROMPT = "a red circle left of a blue square"

DIFFUSERS = """
import sys, torch
from diffc.compiler.load import load
pipeline = load(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
options = dict(num_inference_steps=int(sys.argv[2]), guidance_scale=5.0)
pipeline(sys.argv[3], generator=torch.Generator("cpu").manual_seed(0), **options).images[0].save(sys.argv[4])
"""


def measured(command: list[str]) -> tuple[float, float]:
    """Run a command; give its seconds and its peak resident memory in MB."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed with status {status}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def compared(source: Path, steps: int, repeats: int, folder: Path) -> dict[str, float]:
    """Build a bundle, then let it and diffusers draw in turns; give medians and the ratios diffusers / diffc."""
    python, bundle, picture = sys.executable, folder / f"{source.stem}.diffc", str(folder / "out.png")
    cli = [python, "-c", "from diffc.compiler.cli import main; main()"]
    subprocess.run([*cli, "build", str(source), "--steps", str(steps), "-o", str(bundle)], check=True)
    rows: dict[str, list[tuple[float, float]]] = {"diffc": [], "diffusers": []}
    for _ in range(repeats):
        run = [*cli, "run", str(bundle), PROMPT, "--guidance", "5", "--seed", "0", "-o", picture]
        rows["diffc"].append(measured(run))
        rows["diffusers"].append(measured([python, "-c", DIFFUSERS, str(source), str(steps), PROMPT, picture]))
    found = {}
    for name, row in rows.items():
        found[f"{name}_seconds"] = statistics.median(seconds for seconds, _ in row)
        found[f"{name}_megabytes"] = statistics.median(megabytes for _, megabytes in row)
    found["times_faster"] = found["diffusers_seconds"] / found["diffc_seconds"]
    found["times_less_memory"] = found["diffusers_megabytes"] / found["diffc_megabytes"]
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: compared(ROOT / "examples" / "models" / file, options.steps, options.repeats, Path(folder))
            for name, file in MODELS.items()
        }
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(
        "| model | diffc | diffusers | ratio | diffc, peak | diffusers, peak | ratio |\n|---|---|---|---|---|---|---|"
    )
    for name, row in found.items():
        seconds = f"{row['diffc_seconds']:.1f} s | {row['diffusers_seconds']:.1f} s | {row['times_faster']:.1f} ×"
        memory = f"{row['diffc_megabytes']:.0f} MB | {row['diffusers_megabytes']:.0f} MB"
        print(f"| {name} | {seconds} | {memory} | {row['times_less_memory']:.1f} × |")


if __name__ == "__main__":
    main()
