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
    """Return the size of the pipeline's call when a program was traced; None for the pipeline's own.

    Raises `BuildError` for bundles that do not know.
    """
    name = _name_of(program)
    if name["width"]:
        return int(name["width"]), int(name["height"])
    if "sizes" not in recipe:
        raise BuildError("an older diffc built this bundle, and did not record its sizes", fix="build it again")
    return next((tuple(size) for size in recipe["sizes"]), None)


def arguments_of(program: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fixed arguments of the pipeline's call when a program was traced; a pipeline need not take all."""
    width, height = size_of(program, recipe) or (None, None)
    fixed = {"width": width, "height": height, "strength": recipe["strength"]}
    arguments = {key: value for key, value in fixed.items() if value is not None}
    return {"num_inference_steps": int(_name_of(program)["steps"]), **arguments, **recipe["options"]}


def _name_of(program: str) -> re.Match[str]:
    name = NAME.search(program)
    if name is None:
        raise BuildError(f"{program} was not built from a pipeline", fix="compare it in the code that made it")
    return name


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
