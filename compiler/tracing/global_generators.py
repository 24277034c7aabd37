"""Refuse functions that use the generators of a whole process: no seed of a request reaches them.

What ``random`` and NumPy return would be a constant of the program, and noise after ``torch.manual_seed`` would be
that of the request's seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from diffc.compiler.errors import CaptureError


@contextmanager
def global_generators_unused() -> Iterator[None]:
    """Raise `CaptureError` where the block seeds or uses a generator of the process, and name it."""
    before = _states()
    yield
    used = [name for name, state in _states().items() if state != before[name]]
    if used:
        what = f"the function seeds or uses the generator of {used[0]}, which no seed of a request reaches"
        raise CaptureError(what, fix="compute noise with torch.randn, and seed nothing")


def _states() -> dict[str, Any]:
    return {
        "random": random.getstate(),
        "numpy.random": repr(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state().tolist(),
    }
