"""State facts about operators of ATen."""

from __future__ import annotations

from typing import Any


def is_view(func: Any) -> bool:
    """Say whether an operator returns views of its first argument."""
    return any(
        returned.alias_info is not None and not returned.alias_info.is_write for returned in func._schema.returns
    )
