"""Cache the results of graphs that depend on the prompt alone: a text encoder runs once for each distinct prompt."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BYTES = 256 << 20
"""Bytes that cached results may take by default."""


class PromptCache:
    """Hold the results of graph calls by the graphs' inputs; the least recently used are removed first.

    Results are read-only. One cache may be shared by threads; two that miss at once both compute.
    """

    def __init__(self, limit: int = BYTES) -> None:
        self.limit = limit
        self.bytes = self.hits = self.misses = 0
        self._entries: OrderedDict[bytes, Sequence[Array]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, graph: str, feeds: Mapping[str, Array], compute: Callable[[], Sequence[Array]]) -> Sequence[Array]:
        """Return the cached results of a graph for these feeds, or compute them and cache small ones."""
        key = _digest(graph, feeds)
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                self.hits += 1
                return self._entries[key]
            self.misses += 1
        results = compute()
        size = _bytes(results)
        for array in results:
            array.flags.writeable = False
        with self._lock:
            if size <= self.limit and key not in self._entries:
                self._entries[key] = results
                self.bytes += size
            while self.bytes > self.limit:
                _, oldest = self._entries.popitem(last=False)
                self.bytes -= _bytes(oldest)
        return results


def _digest(graph: str, feeds: Mapping[str, Array]) -> bytes:
    digest = hashlib.sha256(graph.encode())
    for name, array in sorted(feeds.items()):
        digest.update(f"\0{name}\0{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _bytes(arrays: Sequence[Array]) -> int:
    return sum(array.nbytes for array in arrays)
