"""Write bundles entirely or not at all, and describe their files for the manifest."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffc.compiler.errors import BuildError

PARTIAL = ".partial"
"""The ending of the names of folders that are being written."""


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a folder that is renamed to the output when all went well, and removed otherwise.

    Of two at the same time, the first that ends gets the name.
    """
    clear_abandoned(output)
    _check_free(output)
    with _beside(output) as folder:
        yield folder
        _check_free(output)
        folder.rename(output)


def _check_free(output: Path) -> None:
    if os.path.lexists(output):
        raise BuildError(f"{output} exists", fix="remove it or choose another name with -o")


@contextmanager
def changed_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that replaces another when all went well, and is removed otherwise.

    Of two at the same time, the last that ends stays.
    """
    with _beside(path) as folder, _beside(path) as aside:
        yield folder
        before = path.rename(aside / path.name)
        try:
            folder.rename(path)
        except BaseException:
            before.rename(path)
            raise


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(output)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=PARTIAL, dir=output.parent))
        held = _locked(folder)
    except OSError as error:
        raise BuildError(f"{output} cannot be written: {error.strerror}", fix="choose another place with -o") from error
    try:
        folder.chmod(0o755)
        yield folder
    except OSError as error:
        raise BuildError(
            f"the bundle cannot be written: {error.strerror or error}",
            where=str(output),
            fix="free some space or choose another place with -o",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def clear_abandoned(output: Path) -> None:
    """Remove the partial folders of an output whose processes were killed; a bundle that one had moved aside returns.

    A process holds a lock on its folder, which ends with it.
    """
    for folder in output.parent.glob(f".{glob.escape(output.name)}.*{PARTIAL}"):
        try:
            held = _locked(folder)
        except OSError:  # its process lives, or has just removed it
            continue
        if (folder / output.name).exists() and not os.path.lexists(output):
            (folder / output.name).rename(output)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _locked(folder: Path) -> int:
    """Lock a folder, and return the descriptor that holds the lock. Raises `OSError` where another process does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_space(needed: int, folder: Path) -> None:
    """Raise `BuildError` where the disk of a folder has less free space than needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"the bundle needs up to {needed / 1e9:.2f} GB of disk, and there are {free / 1e9:.2f} GB"
        fix = "free some space, choose another place with -o, or a target that stores less, such as ort-fp16"
        raise BuildError(what, where=str(folder.absolute()), fix=fix)


def file_entry(path: Path) -> dict[str, int | str]:
    """Return the manifest's entry of a file: its size and its SHA-256."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of the bundle that a folder becomes."""
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
