"""Kill builds at random moments: ``python -m tests.fuzz.kill --seed 0 --kills 200 --seconds 1200``.

A killed build leaves no bundle, or a complete one if it had ended. The next build clears what killed ones have left,
writes the same bundle as one that nothing disturbed, and finds the cache of exports usable.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from torch import nn

from diffc.compiler import capture, write_bundle
from diffc.compiler.ir.program import Program
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.disk_cache import Cache


class Mixes(nn.Module):
    """Stand for a denoiser, with weights that lie outside of its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layers(sample))


def program() -> Program:
    """Capture a sampler of two steps."""
    torch.manual_seed(0)
    mixes = Mixes()

    def sample() -> torch.Tensor:
        latents = torch.randn(1, 3, 8, 64)
        for step in (0.5, 0.25):
            latents = latents.clamp(-1, 1) - step * mixes(latents)
        return latents

    return capture(sample, {"mixes": mixes})


def in_child(function: Callable[[], object], kill_after: float | None = None) -> bool:
    """Run a function in a child, which is killed after some seconds; return whether it ended well by itself."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0


def kill_builds(folder: Path, seed: int, kills: int, seconds: float = float("inf")) -> int:
    """Kill builds, then check what is left; return how many were killed. Raises `AssertionError` for a fault."""
    torch.set_num_threads(1)
    random, captured, output, start = Random(seed), program(), folder / "x.diffc", time.monotonic()

    def build() -> None:
        write_bundle([captured], output)

    assert in_child(build), "a build that nothing disturbs fails"
    expected, killed = digests(output), 0
    before = time.monotonic()
    shutil.rmtree(output)
    assert in_child(build)
    length = time.monotonic() - before
    while killed < kills and time.monotonic() - start < seconds:
        shutil.rmtree(output, ignore_errors=True)
        if random.random() < 0.2:
            Cache.default().clear()
        in_child(build, kill_after=random.uniform(0, 1.2 * length))
        killed += 1
        if killed % 50 == 0:
            print(f"{killed} kills, {time.monotonic() - start:.0f} s", flush=True)
        if output.exists():
            assert in_child(lambda: open_bundle(output)), f"kill {killed} leaves a bundle that cannot be opened"
        if killed % 10 == 0 or killed == kills:
            shutil.rmtree(output, ignore_errors=True)
            assert in_child(build), f"the build after kill {killed} fails"
            assert digests(output) == expected, f"the build after kill {killed} writes another bundle"
            left = [path.name for path in folder.iterdir() if path != output]
            assert not left, f"the build after kill {killed} leaves {left}"
    return killed


def digests(bundle: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but the report, which holds times."""
    files = [path for path in sorted(bundle.rglob("*")) if path.is_file() and path.name != "report.html"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    """Kill builds below a folder of their own, with a cache of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diffc-kill-") as folder:
        os.environ["DIFFC_CACHE"] = str(Path(folder) / "cache")
        (Path(folder) / "bundles").mkdir()
        killed = kill_builds(Path(folder) / "bundles", options.seed, options.kills, options.seconds)
    print(f"seed {options.seed}: {killed} builds killed, nothing left")


if __name__ == "__main__":
    main()
