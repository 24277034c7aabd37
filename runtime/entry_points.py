"""Find the objects that installed packages registered, by group and name; an object is imported when it is named."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points

from diffc.runtime.errors import DiffcError


def registered(group: str) -> list[str]:
    """Return the names that are registered in a group."""
    return sorted({point.name for point in entry_points(group=group)})


def find_entry_point(group: str, name: str, noun: str, error: type[DiffcError]) -> EntryPoint:
    """Return the one entry point of this name; ``noun`` names it in the error.

    Raises an ``error`` that lists the known names, or the two packages that claim the same one.
    """
    claims = {point.value: point for point in entry_points(group=group, name=name)}
    if not claims:
        known = registered(group)
        guess = "".join(f"did you mean {close}? " for close in difflib.get_close_matches(name, known, n=1))
        raise error(f"unknown {noun} {name[:40]!r}", fix=f"{guess}known: {', '.join(known)}")
    if len(claims) > 1:
        where = " and ".join(sorted(claims))
        raise error(f"{noun} {name!r} is claimed twice", where=where, fix="uninstall one of the two packages")
    (claim,) = claims.values()
    return claim
