"""Write a file completely or not at all, and find out before the work whether that will be possible."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from diffc.runtime.errors import RequestError

BLOCK = bytes(4096)
"""The content of a trial: a full disk has no space for it."""

WRITABLE = 0o222
"""The bits of a file's mode of which a read-only file has none."""


def write_complete(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Call ``write`` with a temporary file, which takes the path's name afterwards. Raises `RequestError`."""
    path = Path(path)
    with _beside(path) as partial:
        with partial.open("wb") as stream:
            write(stream)
        partial.replace(path)
    return path


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `RequestError` where `write_complete` would, as a trial beside the path shows, which is removed."""
    with _beside(Path(path)) as partial:
        partial.write_bytes(BLOCK)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file beside the path, which is removed; errors name the path."""
    fix = "give a path in a folder that exists, may be written to and has space"
    try:
        if obstacle := _obstacle(path):
            raise RequestError(f"{path} cannot be written: {obstacle}", where=str(path), fix=fix)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            yield partial
        finally:
            with suppress(OSError):
                partial.unlink()
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        raise RequestError(what, where=str(path), fix=fix) from error


def _obstacle(path: Path) -> str | None:
    """Return the file or folder, at a path or above it, that forbids to write there; None where none does."""
    if path.is_dir():
        return "it is a folder"
    if path.exists() and not path.is_file():
        return "it is neither a file nor a folder"
    if path.exists() and not (os.access(path, os.W_OK) and path.stat().st_mode & WRITABLE):
        return "it is read-only"
    if not path.parent.is_dir():
        return f"{path.parent} is no folder" if path.parent.exists() else f"there is no folder {path.parent}"
    return None
