"""Name the values of a graph that later calls may reuse."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """Name a node of a graph, as `body_of` returns it, whose value later calls may reuse.

    With a ``base``, a node that it is computed from, their difference is kept, and a call that reuses it adds the base
    of its own.
    """

    node: str
    base: str = ""


ReusePattern = frozenset[Feature]
"""The features that a call reuses: calls of one reuse pattern need the same nodes."""
