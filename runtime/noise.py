"""Sample what an operation ``noise`` of a program stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffc.runtime.program.program import Op
from diffc.runtime.rng import Generator

POOL, TERMS = "pool", "terms"
"""The attributes of noise that is a sum of normal noises of spawned seeds."""


def sampled(op: Op, generator: Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the generator's next values of the operation's kind and element type, of ``shape``.

    A sum of noises of spawned seeds takes nothing of the generator but its seed.
    """
    terms: Any = op.attr(TERMS)
    if terms is not None:
        return _summed(op.attr(POOL), terms, generator, shape)
    kind: dict[str, Any] = {key: value for key, value in op.attrs if key in ("kind", "low", "high")}
    return generator.values(shape, op.results[0].type.dtype, **kind)


def _summed(pool: Any, terms: Any, generator: Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    total = np.zeros(shape, np.float32)
    for factor, word, *key in terms:
        total += np.float32(factor) * generator.spawned(pool, key, word).randn(shape)
    return total
