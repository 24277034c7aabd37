"""Fuse linear arithmetic: the pass, and the concatenations that it passes through."""

from diffc.passes.fuse_linear.fuse_linear import fuse_linear

__all__ = ["fuse_linear"]
