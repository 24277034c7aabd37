"""Read manifests of every schema, and refuse each key that is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffc.runtime import BundleError, load
from diffc.runtime.bundle.manifest import BuiltEngine, File, inside, parse_json, read_manifest, typed
from diffc.runtime.program.facts import Facts
from tests.mutations import EDITS, edited

FACTS = {"text": "program", "task": "inpaint", "steps": 4}
ENGINE = {"file": "graphs/unet.onnx", "builder": "tensorrt-rtx 1.7.1.116", "archs": ["sm86", "sm89"]}
FILE = {"bytes": 3, "sha256": "0" * 64}
ENTRIES: dict[str, Any] = {
    "schema": 1,
    "target": "ort-fp32",
    "programs": {"main": "program main() {}"},
    "graphs": {"unet": {"file": "graphs/unet.onnx", "component": "unet", "stage": "request_step"}},
    "engines": {"unet": {"file": "engines/unet", "builder": "tensorrt-rtx 1.7", "archs": ["sm86"]}},
    "tokenizers": {"words": "tokenizer/words.json"},
    "files": dict.fromkeys(("graphs/unet.onnx", "engines/unet", "tokenizer/words.json"), FILE),
}


def read(**changes: Any) -> Any:
    return read_manifest(json.dumps(ENTRIES | changes).encode())


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=4, diffc="9.9"), "schema 4, written by diffc 9.9; this diffc reads 1 to 3"),
        (lambda m: m.update(schema=0), "schema 0; this diffc reads 1 to 3"),
        (lambda m: m.update(schema=True), "True is not an integer"),
        (lambda m: m.pop("schema"), "None is not an integer"),
        (lambda m: m.update(target=5), "5 is not a string"),
        (lambda m: m.update(programs={}), "the bundle has no program"),
        (lambda m: m.update(programs=[]), "is not an object"),
        (lambda m: m["programs"].update(draw=None), "None is not a string"),
        (lambda m: m["programs"].update(draw=""), "expected 'program'"),
        (lambda m: m.update(schema=3), "is not an object"),
        (lambda m: m.update(schema=3, programs={"draw": {}}), "None is not a string"),
        (lambda m: m.update(schema=3, programs={"draw": FACTS | {"steps": 0}}), "the facts of a program are not legal"),
        (lambda m: m.update(schema=3, programs={"draw": FACTS | {"steps": "4"}}), "4 is not an integer"),
        (lambda m: m.update(schema=3, programs={"draw": FACTS | {"size": [64]}}), "the facts of a program are not"),
        (lambda m: m.update(schema=3, programs={"draw": FACTS | {"size": [64, 0]}}), "the facts of a program are not"),
        (lambda m: m.update(schema=3, programs={"draw": FACTS | {"size": [64, None]}}), "None is not an integer"),
        (
            lambda m: m.update(schema=3, programs={"draw": FACTS | {"variant": "wild"}}),
            "the facts of a program are not",
        ),
        (lambda m: m.update(schema=3, programs={"draw": FACTS | {"task": 1}}), "1 is not a string"),
        (lambda m: m["graphs"]["unet"].update(kind=1), "1 is not a string"),
        (lambda m: m.update(graphs={"unet": "graphs/unet.onnx"}), "is not an object"),
        (lambda m: m["graphs"]["unet"].pop("file"), "None is not a string"),
        (lambda m: m["graphs"].pop("unet"), "program draw calls unet, which the bundle lacks"),
        (lambda m: m["graphs"]["unet"].update(file="/etc/passwd"), "/etc/passwd is not among the files"),
        (lambda m: m["graphs"]["unet"].update(file="graphs/other.onnx"), "graphs/other.onnx is not among the files"),
        (lambda m: m["tokenizers"].update(words="../words.json"), "../words.json is not among the files"),
        (lambda m: m["tokenizers"].clear(), "unknown tokenizer 'words'"),
        (lambda m: m["files"].pop("weights/hidden.bin"), "reads 'weights/hidden.bin', which is no file of the bundle"),
        (lambda m: m["files"].pop("tables.safetensors"), "reads table bias"),
        (lambda m: m["files"].update({"a": {"bytes": -1, "sha256": "0" * 64}}), "no size and SHA-256"),
        (lambda m: m["files"].update({"a": {"bytes": 1, "sha256": "0" * 63}}), "no size and SHA-256"),
        (lambda m: m["files"].update({"a": {"bytes": 1.0, "sha256": "0" * 64}}), "1.0 is not an integer"),
        (lambda m: m.update(engines=None), "None is not an object"),
        (lambda m: m.update(engines=["unet"]), "is not an object"),
        (lambda m: m.update(engines={"unet": "x.engine"}), "x.engine is not an object"),
        (lambda m: m.update(engines={"other": ENGINE}), "an engine is of no graph of the bundle"),
        (lambda m: m.update(engines={"unet": {}}), "None is not a string"),
        (lambda m: m.update(engines={"unet": ENGINE | {"file": "/etc/passwd"}}), "/etc/passwd is not among the files"),
        (lambda m: m.update(engines={"unet": ENGINE | {"file": "../x"}}), "../x is not among the files"),
        (lambda m: m.update(engines={"unet": ENGINE | {"file": 5}}), "5 is not a string"),
        (lambda m: m.update(engines={"unet": ENGINE | {"builder": None}}), "None is not a string"),
        (lambda m: m.update(engines={"unet": ENGINE | {"archs": "sm89"}}), "sm89 is not a list"),
        (lambda m: m.update(engines={"unet": ENGINE | {"archs": [89]}}), "89 is not a string"),
        (lambda m: m.update(engines={"unet": ENGINE | {"stripped": None}}), "None is not true or false"),
        (lambda m: m.update(engines={"unet": ENGINE | {"stripped": 1}}), "1 is not true or false"),
        (lambda m: m.update(engines={"unet": ENGINE | {"stripped": "false"}}), "false is not true or false"),
        (lambda m: m.update(engines={"unet": ENGINE | {"stripped": []}}), r"\[\] is not true or false"),
        (
            lambda m: m.update(engines={"unet": ENGINE | {"stripped": True}}),
            "without weights is of graphs/unet.onnx, which does not lie beside the manifest",
        ),
    ],
)
def test_refuses_a_manifest(bundle: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        load(bundle)


def test_reads_engines(bundle: Path) -> None:
    assert read_manifest((bundle / "manifest.json").read_bytes()).engines == {}
    edit(bundle, lambda m: m.update(engines={"unet": ENGINE}))
    engine = read_manifest((bundle / "manifest.json").read_bytes()).engines["unet"]
    assert engine == BuiltEngine("graphs/unet.onnx", "tensorrt-rtx 1.7.1.116", ("sm86", "sm89"))
    assert list(load(bundle).programs) == ["draw", "plain"]
    edit(bundle, lambda m: m["engines"]["unet"].update(stripped=False))
    assert read_manifest((bundle / "manifest.json").read_bytes()).engines["unet"] == engine


@pytest.mark.parametrize("size", [None, [64, 32]])
def test_reads_the_facts_of_programs(bundle: Path, size: list[int] | None) -> None:
    def with_facts(manifest: dict[str, Any]) -> None:
        texts = manifest["programs"]
        facts = {"task": "inpaint", "steps": 3, "size": size, "variant": "unguided"}
        manifest.update(schema=3, programs={name: {"text": text} for name, text in texts.items()})
        manifest["programs"]["plain"].update(facts)

    assert load(bundle).facts == {}, "which their names do not tell"
    edit(bundle, with_facts)
    assert load(bundle).facts == {"plain": Facts("inpaint", 3, size and (64, 32), "unguided")}
    assert list(load(bundle).programs) == ["draw", "plain"]


@pytest.mark.parametrize(
    ("name", "sizes", "facts"),
    [
        ("text_to_image_20", [], Facts("text-to-image", 20)),
        ("text_to_image_20", [[64, 32]], Facts("text-to-image", 20, (64, 32))),
        ("text_to_image_20_96x64_unguided", [[64, 32], [96, 64]], Facts("text-to-image", 20, (96, 64), "unguided")),
        ("text_to_image_4_no_negative", [], Facts("text-to-image", 4, None, "no_negative")),
        ("main", [], None),
        ("text_to_image_20", None, None),
    ],
)
def test_before_schema_3_names_tell_the_facts(name: str, sizes: Any, facts: Facts | None) -> None:
    recipe = {"task": "text-to-image"} | ({} if sizes is None else {"sizes": sizes})
    manifest = {"schema": 2, "target": "t", "programs": {name: "program"}, "graphs": {}, "files": {}, "tokenizers": {}}
    read = read_manifest(json.dumps(manifest | {"provenance": {"recipe": recipe}}).encode())
    assert read.facts == ({} if facts is None else {name: facts})


def test_only_files_of_onnx_are_read_as_onnx(bundle: Path) -> None:
    (bundle / "graphs/unet.onnx").write_bytes(b"no protocol buffer")
    digest = hashlib.sha256(b"no protocol buffer").hexdigest()
    edit(bundle, lambda m: m["files"].update({"graphs/unet.onnx": {"bytes": 18, "sha256": digest}}))
    with pytest.raises(BundleError, match="an ONNX graph is damaged"):
        load(bundle)
    edit(bundle, lambda m: m["graphs"]["unet"].update(kind="other"))
    with pytest.raises(BundleError, match="opens no graphs of the kind 'other'"):
        load(bundle)("a red circle", guidance_scale=3.0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
OF_FACTS = ["p_4_8x8", "task", "steps", "size", "variant", "provenance", "recipe", "sizes"]
KEYS = [
    *OF_FACTS,
    "kind",
    "schema",
    "target",
    "programs",
    "graphs",
    "files",
    "tokenizers",
    "engines",
    "g",
    "stripped",
    0,
    1,
]
PATHS = st.lists(st.sampled_from(KEYS), max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([1, 3]), EDITS, PATHS, JSON)
def test_mutated_manifests_are_read_or_refused(
    schema: int, edits: list[tuple[float, int, bytes]], path: list[Any], value: Any
) -> None:
    good = {
        "schema": schema,
        "target": "ort-fp32",
        "programs": {"p_4_8x8": "program" if schema < 3 else FACTS},
        "provenance": {"recipe": {"sizes": [[8, 8]], "task": "a task"}},
        "graphs": {"g": {"file": "g.onnx"}},
        "files": {"g.onnx": {"bytes": 1, "sha256": "0" * 64}},
        "tokenizers": {},
        "engines": {"g": {"file": "g.onnx", "builder": "tensorrt 10.3", "archs": ["sm89"], "stripped": True}},
    }
    text = json.dumps(good).encode()
    place: Any = good
    for key in path:
        keys = list(place) if isinstance(place, dict) else []
        chosen = key if key in keys else keys[key % len(keys)] if isinstance(key, int) and keys else None
        if chosen is None:
            break
        before, place = place, place[chosen]
        before[chosen] = value
    for content in (edited(text, edits), json.dumps(good).encode()):
        with suppress(BundleError):
            assert json.dumps(read_manifest(content).raw) == json.dumps(json.loads(content))


def test_refuses_json_that_is_too_long() -> None:
    with pytest.raises(BundleError, match="has 67108865 bytes"):
        parse_json(bytes(2**26 + 1), "manifest.json")


def test_reads_every_entry() -> None:
    manifest = read(extra={"kept": True})
    assert manifest.graphs == {"unet": "graphs/unet.onnx"} and manifest.target == "ort-fp32"
    assert manifest.engines == {"unet": BuiltEngine("engines/unet", "tensorrt-rtx 1.7", ("sm86",))}
    assert manifest.files["engines/unet"] == File(3, "0" * 64)
    assert (manifest.component("unet"), manifest.stage("unet")) == ("unet", "request_step")
    assert not manifest.has_reduced_range("unet") and manifest.raw["extra"] == {"kept": True}


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\\b", "C:x", "a//b", "./a", ".", "a\0b", "a/"])
def test_refuses_paths_that_leave_the_bundle(path: str) -> None:
    with pytest.raises(BundleError, match="leaves the bundle"):
        inside(path)
    assert inside("a/b.c") == "a/b.c"


@pytest.mark.parametrize("data", [b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000])
def test_refuses_json_that_is_damaged_or_ambiguous(data: bytes) -> None:
    with pytest.raises(BundleError, match="x is no JSON"):
        parse_json(data, "x")


def test_a_truth_value_is_not_an_integer() -> None:
    assert typed(3, int, "x") == 3 and typed(True, bool, "x") is True
    with pytest.raises(BundleError, match="True is not an integer"):
        typed(True, int, "x")
