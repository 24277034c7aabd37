"""Name the files in a model's folder that its pipeline does not read: adapters, embeddings, models of other tools."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from diffc.compiler.checkpoint.file_kinds import FileKind, kind_by_tensors
from diffc.compiler.checkpoint.model_index import INDEX, UNUSED
from diffc.compiler.checkpoint.safetensors_header import PICKLE_SUFFIXES, read_header
from diffc.compiler.errors import LoadError

SUFFIXES = (".safetensors", ".sft", ".gguf", *PICKLE_SUFFIXES)
COPIES = re.compile(r"(diffusion_pytorch_model|pytorch_model|model|openvino_model)(-\d{5}-of-\d{5})?\..+")
"""The files of a component: the one that is read, its variants, and copies of it for other libraries."""


def unread_files(folder: Path, components: Iterable[str]) -> list[str]:
    """List the weight files that no component reads, with their kinds: ``style.safetensors (a LoRA …)``."""
    read = re.compile(rf"({'|'.join(map(re.escape, (*components, *UNUSED)))})(_\d+)?")
    paths = (path for depth in ("*", "*/*", "*/*/*") for path in sorted(folder.glob(depth)))
    unread = []
    for path in paths:
        parts = path.relative_to(folder).parts
        is_read = len(parts) == 2 and read.fullmatch(parts[0]) and (COPIES.fullmatch(path.name) or parts[0] in UNUSED)
        is_hidden = any(part.startswith(".") for part in parts)
        if path.suffix in SUFFIXES and path.is_file() and not is_read and not is_hidden:
            kind = _kind(path)
            unread.append("/".join(parts) + (f" ({kind.name})" if kind else ""))
    return unread


def refuse_other_folders(folder: Path) -> None:
    """Raise `LoadError` where a folder is no pipeline, and its weights are those of an adapter or a component."""
    if (folder / INDEX).exists() or (folder.parent / INDEX).exists():
        return
    for path in sorted(folder.glob("*.safetensors")):
        if kind := _kind(path):
            fix = kind.fix.replace("this file", path.name)
            raise LoadError(f"{folder.name} has no {INDEX}: {path.name} is {kind.name}", where=str(folder), fix=fix)


def _kind(path: Path) -> FileKind | None:
    if path.suffix != ".safetensors":
        return None
    try:
        return kind_by_tensors(read_header(path).shapes)
    except LoadError:  # nothing reads the file, so what is wrong with it does not matter
        return None
