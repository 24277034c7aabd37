"""Check noise that is a sum of noises of spawned seeds: ``noise(pool=24, terms=[[factor, word, *key], …])``."""

from __future__ import annotations

import math
from typing import Any

from diffc.runtime.program.program import Op

POOL_MOST, WORDS = 1024, 1024


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
    return next((fault for term in terms if (fault := _fault(term)) is not None), None)


def _fault(term: Any) -> str | None:
    factor, word, *key = term if isinstance(term, tuple) and len(term) > 1 else (None, None)
    if not isinstance(factor, int | float) or type(factor) is bool or not abs(factor) < math.inf:
        return f"a term has the factor {factor}"
    if type(word) is not int or not 0 <= word < WORDS:
        return f"a term has no word from 0 to {WORDS - 1}"
    are_keys = all(type(part) is int and 0 <= part < 2**64 for part in key)
    return None if are_keys else "a spawn key has other parts than integers from 0 to below 2^64"
