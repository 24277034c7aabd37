"""Check the manifests of real bundles and of the corpus against the schema, and that it refuses what readers refuse."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.format.manifest_schema import SCHEMA, schema_errors

FOLDER = Path(__file__).parent
ENGINE = {"file": "unet.onnx", "builder": "tensorrt-rtx 1.7.1.116", "archs": ["sm86", "sm120"]}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """Return a manifest of the corpus."""
    loaded: dict[str, Any] = json.loads((FOLDER / "bundles/sampler/bundle/manifest.json").read_text())
    return loaded


def test_a_compiled_bundle_fits_the_schema(bundle: Path) -> None:
    assert schema_errors(bundle) == []
    written = json.loads((bundle / "manifest.json").read_text())
    assert written.keys() == SCHEMA["properties"].keys(), "a key is in the schema and not written, or the reverse"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("bundles/*/bundle")), ids=lambda path: path.parent.name)
def test_a_bundle_of_the_corpus_fits_the_schema(path: Path) -> None:
    assert schema_errors(path) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(schema=0),
        lambda m: m.update(schema=True),
        lambda m: m.pop("schema"),
        lambda m: m.update(target="ort"),
        lambda m: m.update(programs={}),
        lambda m: m.pop("files"),
        lambda m: m.update(more=1),
        lambda m: m["graphs"]["unet"].pop("file"),
        lambda m: m["graphs"]["unet"].update(stage="latent"),
        lambda m: m["graphs"]["unet"].update(reduced_range=1),
        lambda m: m["graphs"].update({"1": {"file": "a"}}),
        lambda m: m["files"].update({"../a": {"bytes": 1, "sha256": "0" * 64}}),
        lambda m: m["files"].update({"a": {"bytes": -1, "sha256": "0" * 64}}),
        lambda m: m["files"].update({"a": {"bytes": 1, "sha256": "A" * 64}}),
        lambda m: m["engines"].update(unet=ENGINE | {"builder": 5}),
        lambda m: m["engines"].update(unet=ENGINE | {"archs": "sm86"}),
        lambda m: m.update(schema=1, engines={"unet": ENGINE | {"stripped": True}}),
        lambda m: m["provenance"].update(host="x"),
    ],
)
def test_refuses(manifest: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> None:
    changed = copy.deepcopy(manifest)
    change(changed)
    assert schema_errors(changed) != []


@pytest.mark.parametrize("engine", [ENGINE, ENGINE | {"stripped": True}])
def test_takes_engines(manifest: dict[str, Any], engine: dict[str, Any]) -> None:
    assert schema_errors(manifest | {"engines": {"unet": engine}}) == []


@pytest.mark.parametrize(("schema", "engine"), [(1, ENGINE), (2, ENGINE | {"stripped": True})])
def test_takes_older_schemas(manifest: dict[str, Any], schema: int, engine: dict[str, Any]) -> None:
    texts = {name: entry["text"] for name, entry in manifest["programs"].items()}
    assert schema_errors(manifest | {"schema": schema, "programs": texts, "engines": {"unet": engine}}) == []
    assert schema_errors(manifest | {"schema": schema}) != []
