"""Open a bundle and check all of it, before anything that a changed byte could reach is used."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Any

from numpy.typing import NDArray

from diffc.runtime.bundle.manifest import BYTES, ONNX, File, Manifest, read_manifest
from diffc.runtime.bundle.onnx_external_data import external_files
from diffc.runtime.bundle.safetensors import read_tables
from diffc.runtime.bundle.tokenizer import Tokenizer
from diffc.runtime.disk_cache import Cache
from diffc.runtime.errors import BundleError, ParseError, VerifyError
from diffc.runtime.program.parse import read_program
from diffc.runtime.program.program import Program
from diffc.runtime.program.verify import Level, verify

MANIFEST, TABLES = "manifest.json", "tables.safetensors"


@dataclass(frozen=True)
class Bundle:
    """Hold the checked contents of a bundle; the weights stay on disk, under ``root``.

    ``states`` maps each file to what `_state` returned for it when its digest was checked.
    """

    path: Path
    root: Path
    manifest: Manifest
    programs: Mapping[str, Program]
    tables: Mapping[str, NDArray[Any]]
    tokenizers: Mapping[str, Tokenizer]
    states: dict[str, tuple[int, ...]] = field(repr=False, compare=False)

    def graph(self, name: str) -> bytes:
        """Read the ONNX of a graph."""
        return self.read(self.manifest.graphs[name])

    def read(self, name: str) -> bytes:
        """Read a file. Raises `BundleError` as `check_unchanged` does."""
        self.check_unchanged()
        return (self.root / name).read_bytes()

    def check_unchanged(self) -> None:
        """Raise `BundleError` where a file is no longer the one whose digest was checked at opening.

        A file that was written anew with the same content is accepted.
        """
        for name, state in self.states.items():
            try:
                current = _state(self.root / name)
                if current != state:
                    _check(self.root, name, self.manifest.files[name])
                    self.states[name] = current
            except (OSError, BundleError) as error:
                gone = not (self.root / MANIFEST).exists()
                what = "was moved or deleted" if gone else f"was changed, as {name} shows,"
                fix = "load it again, from where it is now"
                raise BundleError(f"{self.path} {what} after it was loaded", where=str(self.root), fix=fix) from error


def open_bundle(path: Path) -> Bundle:
    """Open ``path``, a folder or a tar file of one. Raises `BundleError` with the file and a fix."""
    try:
        if path.is_file():
            return _in_own_folder(lambda folder: _open(path, _unpack(path, folder)))
        return _open(path, path.resolve())
    except BundleError as error:
        error.inside = error.inside or f"opening {path}"
        raise
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error.strerror or error}", where=str(error.filename or path)
        ) from error


def link_or_copy(file: Path, name: Path) -> None:
    """Link a file that is never written again under one more name; copy it where that is not possible."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def _in_own_folder(opened_in: Callable[[Path], Bundle], like: Path | None = None) -> Bundle:
    """Open a bundle in a temporary folder that is removed with it, on the disk of the file ``like`` if one is there."""
    places = [Path(gettempdir()), Cache.default().folder]
    same = [place for place in places if like and place.is_dir() and place.stat().st_dev == like.stat().st_dev]
    folder = Path(mkdtemp(prefix="diffc-", dir=next(iter(same), None)))
    try:
        bundle = opened_in(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(bundle, shutil.rmtree, folder, ignore_errors=True)
    return bundle


def _open(path: Path, root: Path) -> Bundle:
    if not (root / MANIFEST).is_file():
        if (root / "model_index.json").is_file():
            raise _is_checkpoint(path)
        lacks = f"no {MANIFEST}" if root.exists() else "there is nothing of that name"
        raise BundleError(f"{path} is not a bundle: {lacks}", fix="name the folder that `diffc build` wrote")
    with (root / MANIFEST).open("rb") as stream:
        manifest = read_manifest(stream.read(BYTES + 1))
    for name, expected in manifest.files.items():
        _check(root, name, expected)
    if not any(_leaves(root, name) for name in manifest.files):
        return _read(path, root, manifest)
    return _in_own_folder(lambda folder: _read(path, _gathered(root, manifest, folder), manifest), root / MANIFEST)


def _gathered(root: Path, manifest: Manifest, folder: Path) -> Path:
    """Put the files of a bundle, links followed, into a folder: engines read weights only below that of their graph."""
    for name in (MANIFEST, *manifest.files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy((root / name).resolve(), folder / name)
    return folder.resolve()


def _read(path: Path, root: Path, manifest: Manifest) -> Bundle:
    """Read the contents of files whose digests are right."""
    states = {name: _state(root / name) for name in manifest.files}
    for graph, name in manifest.graphs.items():
        CHECKS.get(manifest.kind(graph), _check_nothing_more)(root, name, manifest)
    tables = read_tables((root / TABLES).read_bytes()) if TABLES in manifest.files else {}
    tokenizers = {name: Tokenizer((root / file).read_bytes(), name) for name, file in manifest.tokenizers.items()}
    programs = {name: _program(name, text, manifest, tables) for name, text in manifest.programs.items()}
    return Bundle(path, root, manifest, programs, tables, tokenizers, states)


def _state(file: Path) -> tuple[int, ...]:
    """Return numbers that change when a file is written or replaced."""
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _leaves(root: Path, name: str) -> bool:
    """Return whether a file, links followed, lies outside of a folder."""
    return not (root / name).resolve().is_relative_to(root)


def _check(root: Path, name: str, expected: File) -> None:
    """Raise `BundleError` unless a file is there, and is the expected one; links may lead to it from the bundle."""
    try:
        _check_content(root / name, name, expected)
    except BundleError as error:
        if not _leaves(root, name):
            raise
        what = f"{name} is a link that leaves the bundle, to another file than the manifest's: {error.what}"
        raise BundleError(what, where=name, fix="do not trust this bundle, or download it again") from error


def _check_content(file: Path, name: str, expected: File) -> None:
    if not file.is_file():
        raise BundleError(f"{name} is missing", where=name, fix="copy the whole bundle, or build it again")
    size = file.stat().st_size
    if size != expected.bytes:
        what = "truncated" if size < expected.bytes else "longer than it was"
        raise BundleError(f"{name} is {what}: {size} bytes, not {expected.bytes}", where=name, fix="build it again")
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != expected.sha256:
            raise BundleError(f"{name} was changed: its SHA-256 is another", where=name, fix="build it again")


def _check_onnx(root: Path, name: str, manifest: Manifest) -> None:
    """Check that a model reads files of the bundle only."""
    for location in external_files((root / name).read_bytes()):
        if location not in manifest.files:
            what = f"{name} reads {location[:200]!r}, which is no file of the bundle"
            raise BundleError(what, where=name, fix="do not trust this bundle, or build it again")


def _check_nothing_more(root: Path, name: str, manifest: Manifest) -> None:
    """Leave a file of another kind, whose digest is right, to the engine that opens it."""


CHECKS: Mapping[str, Callable[[Path, str, Manifest], None]] = {ONNX: _check_onnx}
"""Checks of a graph's file beside its digest, by its kind."""


def _program(name: str, text: str, manifest: Manifest, tables: Mapping[str, NDArray[Any]]) -> Program:
    try:
        program = verify(read_program(text), Level.EXECUTABLE, tokenizers=manifest.tokenizers)
    except (ParseError, VerifyError) as error:
        fix = "build the bundle again"
        raise BundleError(f"program {name}: {error.what}", where=error.where, fix=fix) from error
    for graph in program.graphs:
        if graph.name not in manifest.graphs:
            raise BundleError(f"program {name} calls {graph.name}, which the bundle lacks", fix="build it again")
    for table in program.tables:
        array = tables.get(table.name)
        if array is None or (str(array.dtype), array.shape) != (table.type.dtype, table.type.shape):
            raise BundleError(f"program {name} reads table {table.name}: {table.type}, which is not so", where=TABLES)
    return program


def _unpack(path: Path, folder: Path) -> Path:
    """Unpack an uncompressed tar file, which can hold no more than its own size once sparse files are refused."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise BundleError(
                        f"{member.name[:200]} is neither a file nor a folder", fix="do not trust this bundle"
                    )
                archive.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise BundleError(f"{path} leaves the bundle: {error}", fix="do not trust this bundle") from error
    except tarfile.TarError as error:
        raise _no_bundle(path, error) from error
    inner = next(iter(sorted(folder.glob(f"*/{MANIFEST}"))), folder / MANIFEST)
    return (folder if (folder / MANIFEST).exists() else inner.parent).resolve()


def _no_bundle(path: Path, error: tarfile.TarError) -> BundleError:
    """Return the error for a file that cannot be unpacked: a checkpoint, a damaged tar file, or anything else."""
    with path.open("rb") as stream:
        start = stream.read(512)
    if start[8:9] == b"{" and start[7:8] == b"\0":  # the length of a safetensors header, and its JSON
        return _is_checkpoint(path)
    if start[257:262] == b"ustar":
        return BundleError(f"{path} is a damaged tar file: {error}", fix="copy the bundle again, or build it again")
    fix = "name the folder that `diffc build` wrote, or an uncompressed tar file of it"
    return BundleError(f"{path} is neither a bundle nor a tar file of one", fix=fix)


def _is_checkpoint(path: Path) -> BundleError:
    return BundleError(f"{path} is a checkpoint, not a bundle", fix=f"build a bundle of it first: diffc build {path}")
