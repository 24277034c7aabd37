"""Compute what the corpus expects, in plain Python and NumPy: the random numbers of PyTorch and Pillow's resampling.

Nothing here is imported by a runtime, nor imports one: `make_corpus` compares both with PyTorch's and Pillow's results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

Array = np.ndarray


def mersenne_twister(seed: int) -> Iterator[int]:
    """Yield the 32-bit words of MT19937, seeded by the low 32 bits of ``seed`` (``init_genrand``)."""
    state = [seed & 0xFFFFFFFF]
    for at in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + at) & 0xFFFFFFFF)
    while True:
        for at in range(624):
            high_and_low = state[at] & 0x80000000 | state[(at + 1) % 624] & 0x7FFFFFFF
            state[at] = state[(at + 397) % 624] ^ high_and_low >> 1 ^ (0x9908B0DF if high_and_low & 1 else 0)
        for word in state:
            word ^= word >> 11
            word ^= word << 7 & 0x9D2C5680
            word ^= word << 15 & 0xEFC60000
            yield word ^ word >> 18


class Randn:
    """Continue one stream of normal numbers, one value at a time where the runtime works on arrays."""

    def __init__(self, seed: int) -> None:
        self.words = mersenne_twister(seed)
        self.sine: float | None = None

    def __call__(self, *shape: int) -> Array:
        """Draw the next values as float32."""
        count = math.prod(shape)
        if count < 16:
            return np.array([self.one() for _ in range(count)], np.float32).reshape(shape)
        uniforms = [self.uniform24() for _ in range(count)]
        values = [value for at in range(0, count - 15, 16) for value in self.block(uniforms[at : at + 16])]
        if count % 16:
            values += [0.0] * (count % 16)
            values[-16:] = self.block([self.uniform24() for _ in range(16)])
        return np.array(values, np.float32).reshape(shape)

    def uniform24(self) -> np.float32:
        """Draw a multiple of 2^-24 in [0, 1)."""
        return np.float32((next(self.words) & 0xFFFFFF) * 2.0**-24)

    def uniform53(self) -> float:
        """Draw a multiple of 2^-53 in [0, 1), of two words."""
        return ((next(self.words) << 32 | next(self.words)) & (1 << 53) - 1) * 2.0**-53

    def block(self, uniforms: Sequence[np.float32]) -> list[np.float32]:
        """Turn 16 uniform values into 16 normal ones: 8 by the cosine, then 8 by the sine."""
        cosines, sines = [], []
        for first, second in zip(uniforms[:8], uniforms[8:], strict=True):
            logarithm = np.float32(math.log(float(np.float32(1) - first)))
            radius = np.sqrt(np.float32(-2) * logarithm)
            angle = np.float32(2 * math.pi) * second
            cosines.append(radius * np.float32(math.cos(float(angle))))
            sines.append(radius * np.float32(math.sin(float(angle))))
        return cosines + sines

    def one(self) -> float:
        """Draw one value in float64, or take the sine that the draw before last left."""
        if self.sine is not None:
            value, self.sine = self.sine, None
            return value
        turn, height = self.uniform53(), self.uniform53()
        radius = math.sqrt(-2.0 * math.log1p(-height))
        self.sine = radius * math.sin(2.0 * math.pi * turn)
        return radius * math.cos(2.0 * math.pi * turn)


def lanczos(pixels: Array, width: int, height: int) -> Array:
    """Resample uint8[H, W, C] as Pillow does: along the rows, rounded to 8 bits, then along the columns."""
    rows = pixels if pixels.shape[1] == width else _resampled(pixels, width)
    return rows if rows.shape[0] == height else _resampled(rows.swapaxes(0, 1), height).swapaxes(0, 1)


def _resampled(pixels: Array, size: int) -> Array:
    scale = pixels.shape[1] / size
    stretch = max(scale, 1.0)
    columns = []
    for at in range(size):
        centre = (at + 0.5) * scale
        first = max(0, int(centre - 3.0 * stretch + 0.5))
        last = min(pixels.shape[1], int(centre + 3.0 * stretch + 0.5))
        weights = [_lanczos3((source - centre + 0.5) / stretch) for source in range(first, last)]
        shares = [weight / sum(weights) * (1 << 22) for weight in weights]
        fixed = np.array([int(share - 0.5) if share < 0 else int(share + 0.5) for share in shares], np.int64)
        total = (pixels[:, first:last].astype(np.int64) * fixed[None, :, None]).sum(axis=1) + (1 << 21)
        columns.append(np.clip(total >> 22, 0, 255).astype(np.uint8))
    return np.stack(columns, axis=1)


def _lanczos3(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


def _sinc(x: float) -> float:
    return 1.0 if x == 0.0 else math.sin(x * math.pi) / (x * math.pi)


def grey(pixels: Array) -> Array:
    """Turn uint8[…, 3] into uint8[…], by ITU-R 601-2 in 16-bit fixed point."""
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16).astype(np.uint8)
