"""Partition graphs, and write schedules of reuse into programs: the shared parts of the feature caches."""
