"""Follow seeds that NumPy's ``SeedSequence`` spawns from the seed of a request: those of the nodes of a Brownian tree.

Such a sequence turns a seed and a spawn key into words, and a word seeds a generator of its own. A trace knows the
words of its own seed only, by which it tells generators apart; a program says from which key and word each comes:

    n0 = noise(pool=24, terms=[[1.0, 0, 5, 3]])     of the generator seeded by word 0 of the key (5, 3)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Literal
from diffc.compiler.tracing.text_functions import replaced
from diffc.runtime.noise import POOL, TERMS

WORDS = np.dtype(np.uint32)
"""The type of the words of a sequence that seed generators."""


class RequestSeed:
    """Stand for the seed of a request, of which only NumPy's sequences are made. A trace has a ``mark`` for it."""

    def __init__(self, mark: int) -> None:
        self.mark = mark

    def _refuse(self, *_: Any) -> Any:
        raise CaptureError("the seed of the generator is read", fix="compute noise with the generator itself")

    __bool__ = __int__ = __index__ = __float__ = __hash__ = __eq__ = __ne__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __sub__ = __mul__ = __mod__ = __xor__ = _refuse


@dataclass(frozen=True)
class Spawned:
    """Hold whence a seed comes: the mark of the request's seed, and the pool, key and word of its sequence."""

    mark: int
    pool: int
    key: tuple[int, ...]
    word: int

    def attributes(self) -> dict[str, Literal]:
        """Return the attributes of a noise of this seed."""
        return {POOL: self.pool, TERMS: ((1.0, self.word, *self.key),)}


class _Word:
    """Stand for a word of a sequence, which seeds a generator. A trace has a number for it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __int__(self) -> int:
        return self._number


class _Sequence:
    """Generate the words that stand for those of a request's seed, and register them."""

    def __init__(self, real: Any, mark: int, key: Sequence[int], pool: int, spawned: dict[int, Spawned]) -> None:
        self._words = real(mark, spawn_key=key, pool_size=pool).generate_state
        self._place, self._spawned = (mark, pool, tuple(map(int, key))), spawned

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> list[_Word]:
        """Return the first words of the sequence."""
        if np.dtype(dtype) != WORDS:
            raise CaptureError(f"the seed of the generator spawns words of {dtype}", fix="use words of uint32")
        numbers = self._words(n_words).tolist()
        self._spawned |= {number: Spawned(*self._place, word) for word, number in enumerate(numbers)}
        return [_Word(number) for number in numbers]


@contextmanager
def recorded_seeds(spawned: dict[int, Spawned]) -> Iterator[None]:
    """Register, in this block, the seeds that NumPy's sequences spawn from the seed of a request."""
    real: Any = np.random.SeedSequence

    def sequence(entropy: Any = None, *, spawn_key: Sequence[int] = (), pool_size: int = 4, **options: Any) -> Any:
        if isinstance(entropy, RequestSeed):
            return _Sequence(real, entropy.mark, spawn_key, pool_size, spawned)
        return real(entropy, spawn_key=spawn_key, pool_size=pool_size, **options)

    function: Callable[..., Any] = sequence
    with replaced(np.random, "SeedSequence", function):
        yield


def need_fresh(generator: torch.Generator) -> None:
    """Raise `CaptureError` where a generator of a spawned seed has generated noise before; from now on, it has."""
    fresh = torch.Generator().manual_seed(generator.initial_seed())
    if not torch.equal(generator.get_state(), fresh.get_state()):
        what = "a generator of a spawned seed generates several tensors"
        raise CaptureError(what, fix="spawn a seed for each of them")
    torch.rand(1, generator=generator)
