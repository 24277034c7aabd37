"""Build a whole model of 2026 with random weights by the command line, and sample an image: time, memory and disk.

Writes the checkpoint below ``--work`` (16 GB), to be used again. The bundle, as large, is removed without ``--keep``.
Memory is the largest resident set of the process, the pages of mapped files included.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from benchmarks.build import ROOT, size, vanishing
from benchmarks.checkpoints import write
from benchmarks.published import flux_2_klein

DIFFC = str(Path(sys.executable).with_name("diffc"))
PROMPT = "a red circle left of a blue square"


def timed(*arguments: str) -> str:
    """Run a command of diffc in a process of its own; return its seconds and peak memory, as cells of a row."""
    print("diffc", *arguments, file=sys.stderr, flush=True)
    start = time.monotonic()
    process = os.posix_spawn(DIFFC, [DIFFC, *arguments], os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"diffc {arguments[0]} failed")
    seconds, processor = time.monotonic() - start, usage.ru_utime + usage.ru_stime
    return f"{seconds:.0f} s | {processor:.0f} s | {usage.ru_maxrss * 1024 / 1e9:.1f} GB"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where the checkpoint lies")
    parser.add_argument("--target", default="ort-bf16")
    parser.add_argument("--steps", default="4")
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--keep", action="store_true", help="leave the bundle below --work")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    source, bundle = options.work / "flux-2-klein-4b", options.work / "flux-2-klein-4b.diffc"
    if not source.exists():
        write(source, flux_2_klein)
    with nullcontext(bundle) if options.keep else vanishing(bundle):
        choice = ("--target", options.target, "--steps", options.steps, "--size", options.size)
        print(f"{' '.join(choice)}; {os.cpu_count()} cores")
        print("| command | time | of the processors | memory, peak |\n|---|---|---|---|")
        print("| build |", timed("build", str(source), *choice, "-o", str(bundle)), "|", flush=True)
        print(f"checkpoint {size(source) / 1e9:.1f} GB, bundle {size(bundle) / 1e9:.1f} GB", flush=True)
        print("| run |", timed("run", str(bundle), PROMPT, "-o", str(bundle.with_suffix(".png"))), "|")


if __name__ == "__main__":
    main()
