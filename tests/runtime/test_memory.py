"""Peak and free memory, compared with allocations of this test and with files of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diffc.runtime.memory import free_memory, peak_bytes


def test_the_peak_outlives_what_was_freed() -> None:
    code = """from diffc.runtime.memory import peak_bytes
before = peak_bytes()
held = bytearray(b"x") * (64 << 20)
del held
print(peak_bytes() - before)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 << 20 < int(done.stdout) < 160 << 20


def test_the_peak_is_at_least_what_is_resident() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system has no /proc")
    resident = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    assert peak_bytes() >= int(resident.split()[1]) * 1024


def test_free_memory_counts_swap(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 9 kB\nMemAvailable:   300 kB\nSwapTotal: 50 kB\nSwapFree:  20 kB\n")
    assert free_memory(info) == 320 * 1024
    info.write_text("MemTotal: 9 kB\nMemAvailable: 300 kB\n")
    assert free_memory(info) == 300 * 1024
    assert free_memory(tmp_path / "none") is None
