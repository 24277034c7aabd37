"""Check noise that is a sum of noises of spawned seeds: ``noise(pool=24, terms=[[factor, word, *key], …])``."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffc.runtime.program.program import Op

POOL_MOST, WORDS, TERMS, KEY = 1024, 1024, 4096, 256
"""Bounds of a pool, of the words that are read of it, and of the terms and the parts of a spawn key."""

FACTOR = float(np.finfo(np.float32).max)


def fault_of_terms(op: Op) -> str | None:
    """Return which rule of pools and terms a noise breaks, or None."""
    pool, terms = op.attr("pool"), op.attr("terms")
    if pool is None and terms is None:
        return None
    if op.attr("kind") is not None:
        return "noise of spawned seeds is normal"
    if type(pool) is not int or not 4 <= pool <= POOL_MOST:
        return f"the pool is no integer from 4 to {POOL_MOST}"
    if not isinstance(terms, tuple) or not terms:
        return "noise has no terms"
    if len(terms) > TERMS:
        return f"noise has more than {TERMS} terms"
    return next((fault for term in terms if (fault := _fault(term)) is not None), None)


def _fault(term: Any) -> str | None:
    factor, word, *key = term if isinstance(term, tuple) and len(term) > 1 else (None, None)
    if not isinstance(factor, int | float) or type(factor) is bool or not abs(factor) <= FACTOR:
        return f"a term has the factor {factor}"
    if type(word) is not int or not 0 <= word < WORDS:
        return f"a term has no word from 0 to {WORDS - 1}"
    are_keys = all(type(part) is int and 0 <= part < 2**64 for part in key)
    if len(key) > KEY:
        return f"a spawn key has more than {KEY} parts"
    return None if are_keys else "a spawn key has other parts than integers from 0 to below 2^64"
