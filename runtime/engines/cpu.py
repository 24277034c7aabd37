"""Find the instructions of this CPU that decide how 8-bit integers are multiplied."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from diffc.runtime.bundle.open import Bundle

X86 = ("x86_64", "AMD64")
VNNI = {"avx512_vnni", "avx_vnni"}
"""The names in /proc/cpuinfo of the instructions that sum products of bytes in 32 bits."""


@cache
def multiplies_bytes() -> bool:
    """Return whether engines multiply 8-bit integers exactly on this CPU, however large they are.

    Without VNNI, ONNX Runtime and oneDNN sum two products of bytes in 16 bits on x86, and cut large sums off.
    """
    return not is_x86() or bool(cpu_flags() & VNNI)


def computes_in_bytes(bundle: Bundle, graph: str) -> bool:
    """Return whether a graph is computed in bytes, which must be exact; else it is in float, on the same values."""
    return multiplies_bytes() or bundle.manifest.has_reduced_range(graph)


def is_x86() -> bool:
    """Return whether this is a CPU of the x86 family."""
    return platform.machine() in X86


def cpu_flags() -> set[str]:
    """Read the names of the CPU's instructions, none where the system does not list them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())
