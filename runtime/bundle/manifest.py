"""Read ``manifest.json``: the contents of a bundle, with the size and digest of every file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from diffc.runtime.errors import BundleError
from diffc.runtime.program.facts import VARIANTS, Facts

T = TypeVar("T")

FIRST, STRIPPED, SCHEMA = 1, 2, 3
"""The schemas that are read: the first; the one from which engines may hold no weights; and the one that is written.

From schema 3 on programs have facts, and their texts declare images by the word ``image`` instead of ``picture``.
"""
ONNX = "onnx"
"""The kind of a graph's file unless the manifest names another."""

NAME = re.compile(r"\w+?_(?P<steps>\d{1,9})(?:_(?P<size>\d{1,9}x\d{1,9}))?(?:_(?P<variant>no_negative|unguided))?")
"""Names of the programs of a pipeline, which before schema 3 were the record of their facts."""
BYTES = 2**26


@dataclass(frozen=True)
class File:
    """State the size and the SHA-256 (in hexadecimal) of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class BuiltEngine:
    """Describe a graph's engine: its file, its builder (``tensorrt-rtx 1.7.1.116``), and its GPU architectures.

    One that is ``stripped`` holds no weights, and takes those of the graph's file.
    """

    file: str
    builder: str
    archs: tuple[str, ...]
    stripped: bool = False


@dataclass(frozen=True)
class Manifest:
    """Hold the manifest; ``raw`` is all of its JSON, for people and for tools.

    ``programs`` maps names to texts, ``facts`` those of the programs that were traced from a pipeline; ``graphs`` maps
    names to files, and ``engines`` are those of some graphs.
    """

    target: str
    programs: Mapping[str, str]
    facts: Mapping[str, Facts]
    graphs: Mapping[str, str]
    engines: Mapping[str, BuiltEngine]
    tokenizers: Mapping[str, str]
    files: Mapping[str, File]
    raw: Mapping[str, Any]

    def component(self, graph: str) -> str:
        """Return the component of the pipeline that a graph belongs to; empty for arithmetic between components."""
        return str(self.raw["graphs"][graph].get("component") or "")

    def kind(self, graph: str) -> str:
        """Return the kind of a graph's file: ``onnx``, unless the manifest names another."""
        return str(self.raw["graphs"][graph].get("kind", ONNX))

    def operators(self, graph: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the operators of plugins that a graph needs, by domain. Raises `BundleError` for damaged entries."""
        entries = typed(self.raw["graphs"][graph].get("operators", {}), dict, f"graphs, {graph}, operators")
        for domain, entry in entries.items():
            where = f"operators, {domain}"
            for key in ("package", "version", "library", "sha256"):
                typed(typed(entry, dict, where).get(key), str, f"{where}, {key}")
            typed(entry.get("has_functions"), bool, f"{where}, has_functions")
            for name in typed(entry.get("operators"), list, f"{where}, operators"):
                typed(name, str, f"{where}, operators")
        return entries

    def has_reduced_range(self, graph: str) -> bool:
        """Return whether the sum of any two products of 8-bit values in a graph fits 16 bits."""
        return self.raw["graphs"][graph].get("reduced_range") is True

    def stage(self, graph: str) -> str:
        """Return the stage of its component that a graph was split off for; empty if it was not split."""
        return str(self.raw["graphs"][graph].get("stage", ""))


def read_manifest(data: bytes) -> Manifest:
    """Read the manifest. Raises `BundleError` for another schema, a missing key or a path that leaves the bundle."""
    raw = typed(parse_json(data, "manifest.json"), dict, "manifest.json")
    schema = typed(raw.get("schema"), int, "schema")
    reads = f"this diffc reads {FIRST} to {SCHEMA}"
    if schema > SCHEMA:
        writer = f", written by diffc {str(raw.get('diffc'))[:40]}"
        raise BundleError(f"the bundle has schema {schema}{writer}; {reads}", fix="upgrade diffc")
    if schema < FIRST:
        raise BundleError(f"the bundle has schema {schema}; {reads}", fix="build it again")
    files = {inside(path): _file(path, entry) for path, entry in _mapping(raw, "files").items()}
    graphs = {name: _entry(name, entry, "file") for name, entry in _mapping(raw, "graphs").items()}
    tokenizers = {name: typed(path, str, f"tokenizers, {name}") for name, path in _mapping(raw, "tokenizers").items()}
    programs, facts = _programs(raw) if schema == SCHEMA else _programs_without_facts(raw)
    engines = {name: _engine(name, entry, graphs) for name, entry in _mapping(raw, "engines", {}).items()}
    for path in (*graphs.values(), *tokenizers.values(), *(engine.file for engine in engines.values())):
        if path not in files:
            raise BundleError(
                f"{path} is not among the files of the bundle", where="manifest.json", fix="build it again"
            )
    if not programs:
        raise BundleError("the bundle has no program", where="manifest.json", fix="build it again")
    for name, entry in raw["graphs"].items():
        typed(entry.get("kind", ONNX), str, f"graphs, {name}, kind")
    return Manifest(typed(raw.get("target"), str, "target"), programs, facts, graphs, engines, tokenizers, files, raw)


def parse_json(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON without repeated keys. Raises `BundleError`."""
    if len(data) > BYTES:
        raise BundleError(f"{where} has {len(data)} bytes", fix=f"at most {BYTES} are read: build the bundle again")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is no JSON: {str(error)[:200]}", fix="build the bundle again") from error


def typed(value: Any, kind: type[T], where: str) -> T:
    """Return the value if it has the type; a truth value is no integer. Raises `BundleError`."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "true or false"}
        expected = names.get(kind, kind.__name__)
        raise BundleError(f"{str(value)[:80]} is not {expected}", where=where[:200], fix="build the bundle again")
    return value


def inside(path: str) -> str:
    """Return a relative path if it stays inside its folder. Raises `BundleError`."""
    plain = PurePosixPath(path)
    windows = "\\" in path or ":" in path
    if plain.is_absolute() or ".." in plain.parts or windows or "\0" in path or str(plain) != path or path == ".":
        raise BundleError(f"the path {path!r} leaves the bundle", where="manifest.json", fix="do not trust this bundle")
    return path


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key occurs twice")
    return entries


def _mapping(raw: Mapping[str, Any], key: str, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    return typed(raw.get(key, absent), dict, key)


def _entry(name: str, entry: Any, key: str) -> str:
    return typed(typed(entry, dict, name).get(key), str, f"{name}, {key}")


def _programs(raw: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Facts]]:
    entries = {name: typed(entry, dict, f"programs, {name}") for name, entry in _mapping(raw, "programs").items()}
    texts = {name: _entry(f"programs, {name}", entry, "text") for name, entry in entries.items()}
    for name, text in texts.items():
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if entries[name].get("sha256", digest) != digest:
            what = f"program {name[:80]} was changed: its SHA-256 is another"
            raise BundleError(what, where="manifest.json", fix="build it again")
    return texts, {name: _facts(f"programs, {name}", entry) for name, entry in entries.items() if "task" in entry}


def _facts(where: str, entry: Mapping[str, Any]) -> Facts:
    steps, size, variant = typed(entry.get("steps"), int, where), entry.get("size"), entry.get("variant", "")
    edges = [typed(edge, int, where) for edge in typed([] if size is None else size, list, where)]
    if len(edges) != 2 * (size is not None) or any(edge < 1 for edge in (steps, *edges)) or variant not in VARIANTS:
        raise BundleError("the facts of a program are not legal", where=where[:200], fix="build the bundle again")
    return Facts(_entry(where, entry, "task"), steps, None if size is None else (edges[0], edges[1]), variant)


def _programs_without_facts(raw: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Facts]]:
    """Read programs as the schemas 1 and 2 have them: texts, whose names and the recipe tell the facts."""
    texts = {name: typed(text, str, f"programs, {name}") for name, text in _mapping(raw, "programs").items()}
    recipe = typed(_mapping(raw, "provenance", {}).get("recipe", {}), dict, "provenance, recipe")
    return texts, {name: facts for name in texts if (facts := _facts_by_name(name, recipe)) is not None}


def _facts_by_name(name: str, recipe: Mapping[str, Any]) -> Facts | None:
    stated, sizes = NAME.fullmatch(name), recipe.get("sizes")
    if stated is None or not isinstance(sizes, list):
        return None
    size = [int(edge) for edge in stated["size"].split("x")] if stated["size"] else next(iter(sizes), None)
    entry = {"task": recipe.get("task"), "steps": int(stated["steps"]), "size": size}
    return _facts(f"programs, {name}", entry | {"variant": stated["variant"] or ""})


def _engine(name: str, entry: Any, graphs: Mapping[str, str]) -> BuiltEngine:
    where = f"engines, {name}"
    if name not in graphs:
        raise BundleError("an engine is of no graph of the bundle", where=where[:200], fix="build the bundle again")
    file, builder = _entry(where, entry, "file"), _entry(where, entry, "builder")
    archs = tuple(typed(arch, str, where) for arch in typed(entry.get("archs"), list, where))
    stripped = typed(entry.get("stripped", False), bool, where)
    if stripped and "/" in graphs[name]:  # beside which TensorRT looks for the weights, where nothing is checked
        what = f"an engine without weights is of {graphs[name][:200]}, which does not lie beside the manifest"
        raise BundleError(what, where=where[:200], fix="build the bundle again")
    return BuiltEngine(file, builder, archs, stripped)


def _file(path: str, entry: Any) -> File:
    size, digest = typed(typed(entry, dict, path).get("bytes"), int, f"{path}, bytes"), _entry(path, entry, "sha256")
    if size < 0 or not re.fullmatch("[0-9a-f]{64}", digest):
        raise BundleError("no size and SHA-256", where=f"manifest.json, {path}"[:200], fix="build the bundle again")
    return File(size, digest)
