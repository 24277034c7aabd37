"""Change bytes at random, for readers that must refuse what they cannot read by an error of their own."""

from __future__ import annotations

from hypothesis import strategies as st

EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4)
"""Edits: where in the content, how many bytes are dropped, and which are put there."""


def edited(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Apply edits one after the other."""
    for where, drop, put in edits:
        at = int(where * len(content))
        content = content[:at] + put + content[at + drop :]
    return content
