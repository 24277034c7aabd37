"""Read the peak memory of this process, and the free memory of the machine."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Return the peak resident memory of this process, in bytes.

    Linux carries ``ru_maxrss`` over from the process that started this one, so there its status is read.
    """
    if STATUS.exists():
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory(info: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes that programs may still take, swap among them; None where the system does not report it."""
    if not info.exists():
        return None
    lines = (line.split() for line in info.read_text(encoding="utf-8").splitlines())
    sizes = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}
    return sizes["MemAvailable"] + sizes.get("SwapFree", 0)
