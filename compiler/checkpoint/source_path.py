"""Check that a checkpoint is there, before the libraries that read it are imported."""

from __future__ import annotations

from pathlib import Path

from diffc.compiler.errors import LoadError


def check_source(path: Path) -> None:
    """Raise `LoadError` where there is no file or folder of the name."""
    if not path.exists():
        fix = "give a file or folder on this machine; diffc downloads no models"
        raise LoadError(f"there is no {path}", where=str(path.absolute()), fix=fix)
