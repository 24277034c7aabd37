"""Choose a schedule by measured errors and times: the pass, the cost of reuses, the search, and the trials."""

from diffc.passes.cache.auto.auto import auto

__all__ = ["auto"]
