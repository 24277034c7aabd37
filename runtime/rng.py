"""Generate the random values that PyTorch generates on a CPU, without PyTorch.

Source: Matsumoto and Nishimura, "Mersenne Twister: A 623-dimensionally equidistributed uniform pseudo-random number
        generator", ACM TOMACS 8(1), 1998 (MT19937 and ``init_genrand``).
Source: Box and Muller, "A note on the generation of random normal deviates", Ann. Math. Statist. 29(2), 1958.
Specification: PyTorch's ATen on the CPU: ``normal_fill`` (16 values or more) and ``normal_distribution`` (fewer), and
               ``uniform_real_distribution``, ``exponential_distribution`` and ``uniform_int_from_to_distribution``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffc.runtime.errors import RequestError

ONE_WORD = 2**28
"""From as many integers on, each takes two words of the generator."""

LOWEST, HIGHEST = -(2**63), 2**64 - 1


class Generator:
    """Continue one stream of random numbers, as ``torch.Generator("cpu").manual_seed(seed)`` does.

    A seed lies in [-2⁶³, 2⁶⁴); torch seeds MT19937 with its low 32 bits. Raises `RequestError` for any other seed.

    >>> Generator(0).randn((2,))
    array([ 1.5409961, -0.2934289], dtype=float32)
    """

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not LOWEST <= seed <= HIGHEST:
            raise RequestError(f"seed is {seed!r}", fix="give an integer from -2**63 to 2**64 - 1")
        self._seed = int(seed)
        self._engine = np.random.RandomState(int(seed) & 0xFFFFFFFF)
        self._cached: float | None = None

    def separate(self) -> Generator:
        """Return the generator of noise that a pipeline draws without one, of the complement of the seed in 64 bits."""
        return Generator(~self._seed % 2**64)

    def spawned(self, pool: int, key: Sequence[int], word: int) -> Generator:
        """Return the generator whose seed is a word of the sequence that NumPy makes of the seed and a spawn key."""
        sequence = np.random.SeedSequence(self._seed % 2**64, spawn_key=tuple(key), pool_size=pool)
        return Generator(int(sequence.generate_state(word + 1)[word]))

    def values(
        self, shape: tuple[int, ...], dtype: str = "float32", *, kind: str = "normal", low: int = 0, high: int = 1
    ) -> NDArray[Any]:
        """Return the next values of a kind of noise, as the operation ``noise`` of programs names it."""
        match kind:
            case "uniform":
                return self.uniform(shape, dtype)
            case "exponential":
                return self.exponential(shape)
            case "integers":
                return self.integers(shape, low, high)
        return self.randn(shape)

    def uniform(self, shape: tuple[int, ...], dtype: str = "float32") -> NDArray[Any]:
        """Return the next values that ``torch.rand`` generates, float32 or float64 of ``shape``."""
        count = math.prod(shape)
        return (self._uniform(count) if dtype == "float32" else self._uniform_64(count)).reshape(shape)

    def exponential(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the next values that ``exponential_`` generates at the rate 1, float32 of ``shape``."""
        values: NDArray[np.float32] = (-np.log1p(-self._uniform_64(math.prod(shape)))).astype(np.float32)
        return values.reshape(shape)

    def integers(self, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.int64]:
        """Return the next values that ``torch.randint`` generates, int64 of ``shape`` from ``low`` to ``high`` - 1."""
        count = math.prod(shape)
        words = self._words(count).astype(np.uint64) if high - low < ONE_WORD else self._double_words(count)
        offsets = words % np.uint64(high - low)
        return (offsets + np.uint64(low % 2**64)).view(np.int64).reshape(shape)  # modulo 2^64

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the next normal values, float32 of ``shape``."""
        count = math.prod(shape)
        values = self._filled(count) if count >= 16 else np.array([self._single() for _ in range(count)], np.float32)
        return values.reshape(shape)

    def _filled(self, count: int) -> NDArray[np.float32]:
        # Blocks of 16. Where the last block is incomplete, the last 16 values are generated anew.
        uniform = self._uniform(count)
        end = count - count % 16
        values = np.empty(count, np.float32)
        values[:end] = _box_muller(uniform[:end])
        if end < count:
            values[-16:] = _box_muller(self._uniform(16))
        return values

    def _uniform(self, count: int) -> NDArray[np.float32]:
        return (self._words(count) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    def _uniform_64(self, count: int) -> NDArray[np.float64]:
        return (self._double_words(count) & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53

    def _double_words(self, count: int) -> NDArray[np.uint64]:
        high, low = self._words(2 * count).astype(np.uint64).reshape(count, 2).T
        words: NDArray[np.uint64] = high << np.uint64(32) | low
        return words

    def _words(self, count: int) -> NDArray[np.uint32]:
        return self._engine.randint(0, 1 << 32, size=count, dtype=np.uint32)

    def _single(self) -> float:
        # In doubles, two at a time: the sine waits for the next call, even if calls of 16 or more values come between.
        if self._cached is not None:
            value, self._cached = self._cached, None
            return value
        turn, height = map(float, self._uniform_64(2))
        radius, angle = math.sqrt(-2.0 * math.log1p(-height)), 2.0 * math.pi * turn
        self._cached = radius * math.sin(angle)
        return radius * math.cos(angle)


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    # Of every 16 uniform values, eight become radii and eight become angles. Logarithm, cosine and sine are of float64
    # and rounded to float32: so every language and CPU computes the same bits, which float32's own functions do not.
    first, second = uniform.reshape(-1, 2, 8).swapaxes(0, 1)
    radius = np.sqrt(np.float32(-2) * _rounded(np.log, np.float32(1) - first))
    angle = np.float32(2 * math.pi) * second
    return np.stack([radius * _rounded(np.cos, angle), radius * _rounded(np.sin, angle)], axis=1).reshape(-1)


def _rounded(function: np.ufunc, values: NDArray[np.float32]) -> NDArray[np.float32]:
    rounded: NDArray[np.float32] = function(values.astype(np.float64)).astype(np.float32)
    return rounded
