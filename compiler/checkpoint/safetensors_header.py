"""Check the type and the contents of checkpoint files by their headers, before any library loads them.

Files are untrusted: nothing here unpickles, and configuration inside of a file is text with a checked path and size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from mmap import ACCESS_COPY, mmap
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from diffc.compiler.checkpoint.file_kinds import START_BYTES, kind_by_start, kind_by_tensors
from diffc.compiler.errors import LoadError

CONFIG_KEY = "diffusers_config"
CONFIG_SUFFIXES = (".json", ".txt", ".model", ".jinja")
MAX_CONFIG_FILES = 512
MAX_CONFIG_BYTES = 256 << 20

PICKLE_SUFFIXES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
GET_AGAIN = "get the file again; its digest should be the publisher's"


@dataclass(frozen=True)
class Header:
    """Hold the header of a safetensors file: shape and stored type of each tensor, and free-form metadata."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    types: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_of_floats(self) -> bool:
        """Return whether all tensors are of 16 bits or more, so that each is a weight by itself."""
        return {*self.types.values()} <= {"F64", "F32", "F16", "BF16"}


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file.

    Raises `LoadError` where the file is empty, truncated, zero-filled or no safetensors file, where it is a pickle, and
    where it is larger than what this machine can map into memory.
    """
    refuse_by_start(path)
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            types = {name: str(part.get_dtype()) for name, part in slices.items()}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        size = path.stat().st_size
        what = f"{path.name} is damaged, or no safetensors file ({size:,} bytes): {_reason(error)}"
        raise LoadError(what, where=str(path), fix=GET_AGAIN) from error
    if not shapes:
        raise LoadError(f"{path.name} holds no tensors", where=str(path), fix=GET_AGAIN)
    _refuse_by_size(path)
    return Header(path, shapes, metadata, types)


def _refuse_by_size(path: Path) -> None:
    """Raise `LoadError` for a file that the system does not map as PyTorch does: as memory that could be written."""
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_COPY):
            pass
    except OSError as error:
        what = f"{path.name} cannot be mapped into memory ({path.stat().st_size:,} bytes): {error.strerror}"
        fix = "where there is more memory, save it as several files: save_pretrained(folder, max_shard_size='5GB')"
        raise LoadError(what, where=str(path), fix=fix) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Map the tensors of a safetensors file into memory. Raises `LoadError` for a type that PyTorch lacks."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, LookupError, ValueError, RuntimeError) as error:
        what = f"the tensors of {path.name} cannot be read: {_reason(error)}"
        raise LoadError(what, where=str(path), fix=GET_AGAIN) from error


def refuse_by_start(path: Path) -> None:
    """Raise `LoadError` where the first bytes of a file are those of another type, which the error names."""
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
    except OSError as error:
        fix = "check the path and its permissions"
        raise LoadError(f"{path.name} cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    if not start:
        raise LoadError(f"{path.name} is empty", where=str(path), fix=GET_AGAIN)
    if not any(start):
        raise LoadError(
            f"{path.name} starts with zeros: space was reserved for it, but nothing written",
            where=str(path),
            fix=GET_AGAIN,
        )
    if kind := kind_by_start(path, start):
        raise LoadError(f"{path.name} is {kind.name}", where=str(path), fix=kind.fix)


def refuse_partial_models(header: Header) -> None:
    """Raise `LoadError` where a file holds an adapter, one component or anything else than a whole model."""
    parent = header.path.parent
    is_component = (parent / "config.json").exists() and not (parent / "model_index.json").exists()
    kind = kind_by_tensors(header.shapes)
    if is_component and (kind is None or (parent.parent / "model_index.json").exists()):
        what = f"{header.path.name} is one component of a diffusers folder, not a model"
        fix = f"give the folder that holds model_index.json, likely {parent.parent}"
        raise LoadError(what, where=str(header.path), fix=fix)
    if kind is not None:
        raise LoadError(f"{header.path.name} is {kind.name}, not a model", where=str(header.path), fix=kind.fix)


def config_of_metadata(header: Header) -> dict[str, bytes]:
    """Return the configuration files in a header's metadata, by relative path; none where there is no such key.

    Raises `LoadError` where they are no JSON object of text, too large, or have a path that leaves their folder.
    """
    if CONFIG_KEY not in header.metadata:
        return {}
    where = f"{header.path}, metadata key {CONFIG_KEY}"
    form = "a JSON object from relative path to text"
    try:
        files = json.loads(header.metadata[CONFIG_KEY])
    except (ValueError, RecursionError) as error:
        raise LoadError(
            f"the file's own configuration is no JSON: {error}", where=where, fix=f"write {form}"
        ) from error
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise LoadError("the file's own configuration is no map of texts", where=where, fix=f"write {form}")
    encoded = {name: text.encode("utf-8", "surrogatepass") for name, text in files.items()}
    _check_config(encoded, where)
    return encoded


def config_of_folder(folder: Path) -> dict[str, bytes]:
    """Return the configuration files of a diffusers folder, by relative path; weights and code are not read."""
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix in CONFIG_SUFFIXES and p.is_file()]
    if sum(path.stat().st_size for path in paths) > MAX_CONFIG_BYTES:
        raise LoadError(f"{folder.name} is no folder of configuration files", where=str(folder), fix="keep weights out")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    _check_config(files, str(folder))
    return files


def write_config(files: Mapping[str, bytes], folder: Path) -> None:
    """Write configuration files whose paths were checked."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _check_config(files: Mapping[str, bytes], where: str) -> None:
    if len(files) > MAX_CONFIG_FILES or sum(map(len, files.values())) > MAX_CONFIG_BYTES:
        limit = f"{MAX_CONFIG_FILES} files and {MAX_CONFIG_BYTES >> 20} MB"
        raise LoadError("the configuration is too large", where=where, fix=f"keep it within {limit}")
    for name in files:
        if not _is_safe(name):
            fix = f"use relative paths below one folder that end in {', '.join(CONFIG_SUFFIXES)}"
            raise LoadError(f"the configuration names a forbidden path: {name!r}", where=where, fix=fix)
    _refuse_conflicts(files, where)


def _refuse_conflicts(names: Iterable[str], where: str) -> None:
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for name in names:
        if name in folders:
            what = f"the configuration names {name!r} as a file and as a folder"
            raise LoadError(what, where=where, fix="rename one of them")


def _is_safe(name: str) -> bool:
    plain = re.fullmatch(r"[A-Za-z0-9_+@-][\w.+@ -]*(/[A-Za-z0-9_+@-][\w.+@ -]*)*", name, re.ASCII)
    return bool(plain) and len(name) < 240 and PurePosixPath(name).suffix in CONFIG_SUFFIXES


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0].removeprefix("Error while deserializing header: ") if str(error) else "?"
