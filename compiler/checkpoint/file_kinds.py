"""Name what a file is that is no whole model, by its first bytes or its tensors' names: see ``file_kinds.toml``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

START_BYTES = 512


@dataclass(frozen=True)
class FileKind:
    """Name a kind of file, and what to do with one: ``use`` is the key of ``fix`` in the table."""

    name: str
    use: str
    fix: str


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("file_kinds.toml").read_text(encoding="utf-8"))


def _kind(row: Mapping[str, Any]) -> FileKind:
    return FileKind(row["is"], row["use"], _table()["use"][row["use"]])


def kind_by_start(path: Path, start: bytes) -> FileKind | None:
    """Name a file by its first bytes, or else by its name; None for what may be a safetensors file."""
    text = start.decode("latin-1")
    rows = _table()["start"]
    is_header = start[8:9] == b"{"  # after the length, as a safetensors file has it
    by_bytes = (row for row in rows if not is_header and re.match(row["bytes"], text, re.DOTALL))
    by_name = (row for row in rows if path.suffix.lower() in row.get("names", ()))
    row = next(by_bytes, None) or next(by_name, None)
    return _kind(row) if row else None


def kind_by_tensors(shapes: Mapping[str, tuple[int, ...]]) -> FileKind | None:
    """Name a file by the names and shapes of its tensors; None for what may be a whole model."""
    row = next((row for row in _table()["tensors"] if _fits(row, shapes)), None)
    return _kind(row) if row else None


def _fits(row: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether tensors have the signature of a row."""

    def count(pattern: str) -> int:
        return sum(bool(re.search(pattern, name)) for name in shapes)

    if len(shapes) > row.get("most", len(shapes)) or ("lacks" in row and count(row["lacks"])):
        return False
    if "widths" in row and not all(shape[-1:] and shape[-1] in row["widths"] for shape in shapes.values()):
        return False
    return all(map(count, row.get("needs", ()))) and count(row.get("names", "")) >= row.get("share", 0) * len(shapes)
