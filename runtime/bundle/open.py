"""Open a bundle and check all of it, before anything that a changed byte could reach is used."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from numpy.typing import NDArray

from diffc.runtime.bundle.manifest import BYTES, ONNX, File, Manifest, read_manifest
from diffc.runtime.bundle.onnx_external_data import external_files
from diffc.runtime.bundle.safetensors import read_tables
from diffc.runtime.bundle.tokenizer import Tokenizer
from diffc.runtime.errors import BundleError, ParseError, VerifyError
from diffc.runtime.program.parse import read_program
from diffc.runtime.program.program import Program
from diffc.runtime.program.verify import Level, verify

MANIFEST, TABLES = "manifest.json", "tables.safetensors"


@dataclass(frozen=True)
class Bundle:
    """Hold the checked contents of a bundle; the weights stay on disk, under ``root``."""

    path: Path
    root: Path
    manifest: Manifest
    programs: Mapping[str, Program]
    tables: Mapping[str, NDArray[Any]]
    tokenizers: Mapping[str, Tokenizer]

    def graph(self, name: str) -> bytes:
        """Read the ONNX of a graph."""
        return (self.root / self.manifest.graphs[name]).read_bytes()


def open_bundle(path: Path) -> Bundle:
    """Open ``path``, a folder or a tar file of one. Raises `BundleError` that names the file and says what to do."""
    try:
        if not path.is_file():
            return _open(path, path.resolve())
        folder = Path(mkdtemp(prefix="diffc-"))
        try:
            bundle = _open(path, _unpack(path, folder))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(bundle, shutil.rmtree, folder, ignore_errors=True)
        return bundle
    except BundleError as error:
        error.inside = error.inside or f"opening {path}"
        raise
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error.strerror or error}", where=str(error.filename or path)
        ) from error


def _open(path: Path, root: Path) -> Bundle:
    if not (root / MANIFEST).is_file():
        raise BundleError(f"{path} is not a bundle: no {MANIFEST}", fix="name the folder that `diffc build` wrote")
    with (root / MANIFEST).open("rb") as stream:
        manifest = read_manifest(stream.read(BYTES + 1))
    for name, expected in manifest.files.items():
        _check(root, name, expected)
    for graph, name in manifest.graphs.items():
        CHECKS.get(manifest.kind(graph), _check_nothing_more)(root, name, manifest)
    tables = read_tables((root / TABLES).read_bytes()) if TABLES in manifest.files else {}
    tokenizers = {name: Tokenizer((root / file).read_bytes(), name) for name, file in manifest.tokenizers.items()}
    programs = {name: _program(name, text, manifest, tables) for name, text in manifest.programs.items()}
    return Bundle(path, root, manifest, programs, tables, tokenizers)


def _check(root: Path, name: str, expected: File) -> None:
    file = root / name
    if not file.resolve().is_relative_to(root):
        raise BundleError(f"{name} is a link that leaves the bundle", where=name, fix="do not trust this bundle")
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
"""What is checked of a graph's file beside its digest, by its kind."""


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
        raise BundleError(f"{path} is neither a bundle nor a tar file of one: {error}", fix="build it again") from error
    inner = next(iter(sorted(folder.glob(f"*/{MANIFEST}"))), folder / MANIFEST)
    return (folder if (folder / MANIFEST).exists() else inner.parent).resolve()
