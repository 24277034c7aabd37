"""Reuse features of earlier steps: one system per file, each a schedule over features that it finds by structure."""

from collections.abc import Callable, Mapping

from diffc.compiler.ir import Program
from diffc.passes.cache.deepcache import deepcache

CACHES: Mapping[str, Callable[..., tuple[Program, ...]]] = {
    cache.__name__.replace("_", "-"): cache
    for cache in (
        # What a UNet has inside of a skip connection
        deepcache,
    )
}
"""The caches by the names that ``--cache`` takes."""

__all__ = ["CACHES"]
