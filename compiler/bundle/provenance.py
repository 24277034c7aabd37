"""Record how a bundle was built, and read it back, so that the pipeline it was built from can sample the same."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffc.compiler.bundle.atomic_folder import file_entry
from diffc.compiler.errors import BuildError
from diffc.runtime.program.facts import Facts

VERSIONED = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers")
"""Libraries whose versions decide the bytes of a bundle."""


def arguments_of(facts: Facts, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the pipeline's call that a program was traced with; a pipeline need not take them all."""
    width, height = facts.size or (None, None)
    fixed = {"width": width, "height": height, "strength": recipe["strength"]}
    stated = {key: value for key, value in fixed.items() if value is not None}
    return {"num_inference_steps": facts.steps, **stated, **recipe["options"]}


def facts_of(facts: Mapping[str, Facts], program: str) -> Facts:
    """Return the facts of a program. Raises `BuildError` where the bundle does not record them."""
    if program not in facts:
        what = f"{program} was not built from a pipeline, or by an older diffc that does not record its size"
        raise BuildError(what, fix="build it again, or compare it in the code that traced it")
    return facts[program]


def check_component_files(recipe: Mapping[str, Any], names: Collection[str], bundle: Path | str) -> None:
    """Raise `BuildError` where a file that the build took a component from is not among those named now."""
    files = recipe.get("component_files", {})
    if missing := sorted(files.keys() - names):
        what = f"the bundle was built with {missing[0]} from {files[missing[0]]}"
        raise BuildError(what, where=str(bundle), fix=f"name the file: --component {missing[0]}=FILE")


def differing_sources(provenance: Mapping[str, Any], source: Path, files: Mapping[str, Path]) -> Iterator[str]:
    """Describe the source, and each of the other ``files``, whose digest is not the one that the build recorded."""
    if provenance.get("source_sha256") != _digest(source):
        yield f"{source} is not the {provenance.get('source')} that the bundle was built from: its digest is another"
    recorded = provenance.get("file_sha256", {})
    for name, path in files.items():
        if name not in recorded:
            yield f"the bundle was built without a file of its own for {name}, which {path} is now"
        elif recorded[name] != _digest(path):
            yield f"{path} is not the file of {name} that the bundle was built from: its digest is another"


def weights_digest(provenance: Mapping[str, Any]) -> str:
    """Return one digest of all weights that a bundle was built from; empty where they come from no checkpoint."""
    digests = [provenance.get("source_sha256", ""), *provenance.get("file_sha256", {}).values()]
    return str(digests[0]) if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def provenance_of(
    source: Path | None, recipe: Mapping[str, Any], files: Mapping[str, Path] = MappingProxyType({})
) -> dict[str, Any]:
    """Record name and digest of the source, the digests of other ``files`` of the build, its options, and versions."""
    origin = {} if source is None else {"source": source.resolve().name, "source_sha256": _digest(source)}
    digests = {name: _digest(path) for name, path in sorted(files.items())}
    return {
        **origin,
        **({"file_sha256": digests} if digests else {}),
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
