"""Compute how Pillow resizes one side of an 8-bit image: each result is a sum of source values with integer weights.

The weights are those of ``Resample.c``, in units of 2^-22: https://github.com/python-pillow/Pillow
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Resampling

UNIT = 2**22
"""What the weights of a result add up to, but for rounding."""


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _hamming(x: float) -> float:
    x = abs(x)
    if x == 0.0:
        return 1.0
    return 0.0 if x >= 1.0 else math.sin(x * math.pi) / (x * math.pi) * (0.54 + 0.46 * math.cos(x * math.pi))


def _bicubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


def _sinc(x: float) -> float:
    return math.sin(x * math.pi) / (x * math.pi) if x else 1.0


FILTERS: Mapping[int, tuple[Callable[[float], float], float]] = {
    Resampling.BOX: (_box, 0.5),
    Resampling.BILINEAR: (_bilinear, 1.0),
    Resampling.HAMMING: (_hamming, 1.0),
    Resampling.BICUBIC: (_bicubic, 2.0),
    Resampling.LANCZOS: (_lanczos, 3.0),
}
"""Pillow's filters, and how far from a pixel's centre each reaches."""


def weights(resample: int, source: int, start: float, end: float, size: int) -> NDArray[np.float64]:
    """Return the integer weights [size, source] that resize the part of a side from ``start`` to ``end``."""
    function, support = FILTERS[resample]
    scale = (end - start) / size
    stretch = max(scale, 1.0)
    matrix = np.zeros((size, source))
    for row in range(size):
        centre = start + (row + 0.5) * scale
        first = max(0, int(centre - support * stretch + 0.5))
        last = min(source, int(centre + support * stretch + 0.5))
        values = [function((at - centre + 0.5) * (1.0 / stretch)) for at in range(first, last)]
        total = sum(values)
        fractions = [value / total if total else value for value in values]
        matrix[row, first:last] = [int(math.copysign(0.5, f) + f * UNIT) for f in fractions]
    return matrix


def nearest(source: int, start: float, end: float, size: int) -> list[int]:
    """Return the source of each result where the nearest pixel is taken."""
    scale, at, places = (end - start) / size, start + (end - start) / size * 0.5, list[int]()
    for _ in range(size):
        places.append(min(max(int(at), 0), source - 1))
        at += scale
    return places
