"""Record how a bundle was built, and read it back, so that the pipeline it was built from can sample the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffc.compiler.bundle.atomic_folder import file_entry
from diffc.compiler.errors import BuildError

VERSIONED = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers")
"""Libraries whose versions decide the bytes of a bundle."""

NAME = re.compile(r"_(?P<steps>\d+)(?:_(?P<width>\d+)x(?P<height>\d+))?(?:_no_negative|_unguided)?$")
"""How the names of programs end that were built from a pipeline."""


def size_of(program: str, recipe: Mapping[str, Any]) -> tuple[int, int] | None:
    """Give the size that the pipeline was asked for when a program was traced; None where nobody said one.

    Raises `BuildError` for bundles that do not know.
    """
    found = _said(program)
    if found["width"]:
        return int(found["width"]), int(found["height"])
    if "sizes" not in recipe:
        raise BuildError("an older diffc built this bundle, and does not say of which sizes", fix="build it again")
    return next((tuple(size) for size in recipe["sizes"]), None)


def arguments_of(program: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Give what was fixed of the pipeline's call when a program was traced; a pipeline need not take all of it."""
    width, height = size_of(program, recipe) or (None, None)
    fixed = {"width": width, "height": height, "strength": recipe["strength"]}
    said = {key: value for key, value in fixed.items() if value is not None}
    return {"num_inference_steps": int(_said(program)["steps"]), **said, **recipe["options"]}


def _said(program: str) -> re.Match[str]:
    found = NAME.search(program)
    if found is None:
        raise BuildError(f"{program} was not built from a pipeline", fix="compare it in the code that made it")
    return found


def provenance_of(source: Path | None, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Record the source's name and digest, the options of the build, and the versions of libraries."""
    origin = {} if source is None else {"source": source.resolve().name, "source_sha256": _digest(source)}
    return {
        **origin,
        "recipe": dict(recipe),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    }


def _digest(source: Path) -> str:
    """Return the SHA-256 of a file, or of the names and digests of the files in a folder."""
    if source.is_file():
        return str(file_entry(source)["sha256"])
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    lines = [f"{path.relative_to(source).as_posix()} {file_entry(path)['sha256']}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
