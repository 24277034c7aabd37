"""Write the files of a bundle: tables, tokenizers, reports, and the manifest that names them all."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from diffc.compiler.analysis.work import Work
from diffc.compiler.backends.backend import BuiltEngine
from diffc.compiler.bundle.atomic_folder import file_entry, write_manifest
from diffc.compiler.ir.program import Graph, Program
from diffc.compiler.quantization.int8_saturation import has_reduced_range
from diffc.runtime.bundle.manifest import ONNX, SCHEMA
from diffc.runtime.bundle.open import MANIFEST, TABLES


@dataclass(frozen=True)
class Contents:
    """Hold the contents of a bundle other than the files of its graphs and engines.

    ``files`` maps each graph to its file, ``engines`` each graph to its engine, ``extras``
    each graph to more fields of its manifest entry, ``tokenizers`` each name to the content
    of its ``tokenizer.json``, and ``reports`` the names of JSON files to their content.
    """

    target: str
    programs: Sequence[Program]
    tokenizers: Mapping[str, str]
    files: Mapping[str, str]
    engines: Mapping[str, BuiltEngine]
    extras: Mapping[str, Mapping[str, Any]]
    work: Work
    provenance: Mapping[str, Any]
    reports: Mapping[str, Any]


def write_contents(folder: Path, contents: Contents) -> None:
    """Write a bundle into the folder in which its graphs and engines lie already."""
    tables = {t.name: t.data for program in contents.programs for t in program.tables if t.data is not None}
    (folder / TABLES).write_bytes(save(tables))
    (folder / "tokenizer").mkdir()
    for name, text in contents.tokenizers.items():
        (folder / "tokenizer" / f"{name}.json").write_text(text, encoding="utf-8")
    for name, report in contents.reports.items():
        (folder / f"{name}.json").write_text(json_of(report), encoding="utf-8")
    write_manifest(folder, _manifest(folder, contents))


def add_file(folder: Path, name: str, text: str) -> None:
    """Write one more file into a bundle that has its manifest, and name it there."""
    (folder / name).write_text(text, encoding="utf-8")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    files = dict(sorted((manifest["files"] | {name: file_entry(folder / name)}).items()))
    write_manifest(folder, manifest | {"files": files})


def json_of(report: Any) -> str:
    """Return a report as its file in a bundle holds it."""
    return json.dumps(report) + "\n"


def _manifest(folder: Path, contents: Contents) -> dict[str, Any]:
    graphs = {graph.name: graph for program in contents.programs for graph in program.graphs}
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {
        "schema": SCHEMA,
        "diffc": importlib.metadata.version("diffc"),
        "target": contents.target,
        "programs": {program.name: _program_entry(program) for program in contents.programs},
        "graphs": {name: _graph_entry(graph, contents) for name, graph in graphs.items()},
        "engines": {name: engine.entry for name, engine in contents.engines.items()},
        "tokenizers": {name: f"tokenizer/{name}.json" for name in contents.tokenizers},
        "files": {name: file_entry(files[name]) for name in sorted(files)},
        "stages": contents.work.parameters,
        "multiply_adds": contents.work.multiply_adds,
        "provenance": dict(contents.provenance),
    }


def _program_entry(program: Program) -> dict[str, Any]:
    text = str(program)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"text": text, "sha256": digest, **({} if program.facts is None else asdict(program.facts))}


def _graph_entry(graph: Graph, contents: Contents) -> dict[str, Any]:
    return {
        "file": contents.files[graph.name],
        "kind": ONNX,
        "component": graph.component,
        "stage": graph.stage,
        "reduced_range": has_reduced_range(graph),
        **contents.extras.get(graph.name, {}),
    }
