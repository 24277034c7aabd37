"""Name the values of a graph that later calls may reuse."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """Name a node of a graph, as `body_of` gives it, whose value later calls may take over.

    With a ``base``, a node that it is computed from, what is kept is their difference, and who reuses it adds the base
    of its own call.
    """

    node: str
    base: str = ""


Kind = frozenset[Feature]
"""What a call reuses: calls of one kind need the same nodes."""
