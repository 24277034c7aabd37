"""Read manifests, and refuse what an attacker or an accident makes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from diffc.runtime import BundleError
from diffc.runtime.bundle.manifest import BuiltEngine, File, inside, parse_json, read_manifest, typed

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


def test_reads_every_entry() -> None:
    manifest = read(extra={"kept": True})
    assert manifest.graphs == {"unet": "graphs/unet.onnx"} and manifest.target == "ort-fp32"
    assert manifest.engines == {"unet": BuiltEngine("engines/unet", "tensorrt-rtx 1.7", ("sm86",))}
    assert manifest.files["engines/unet"] == File(3, "0" * 64)
    assert (manifest.component("unet"), manifest.stage("unet")) == ("unet", "request_step")
    assert not manifest.has_reduced_range("unet") and manifest.raw["extra"] == {"kept": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 1000}, "schema 1000.*upgrade diffc"),
        ({"schema": 0}, "schema 0.*build it again"),
        ({"schema": True}, "True is not an integer"),
        ({"target": 5}, "5 is not a string"),
        ({"programs": {}}, "no program"),
        ({"programs": {"main": 1}}, "1 is not a string"),
        ({"graphs": []}, "is not an object"),
        ({"graphs": {"unet": {"file": "graphs/other.onnx"}}}, "graphs/other.onnx is not among the files"),
        ({"tokenizers": {"words": "other.json"}}, "other.json is not among the files"),
        ({"engines": {"vae": ENTRIES["engines"]["unet"]}}, "an engine is of no graph"),
        ({"files": ENTRIES["files"] | {"../x": FILE}}, "leaves the bundle"),
        ({"files": ENTRIES["files"] | {"x": {"bytes": -1, "sha256": "0" * 64}}}, "no size and SHA-256"),
        ({"files": ENTRIES["files"] | {"x": {"bytes": 1, "sha256": "0" * 63}}}, "no size and SHA-256"),
    ],
)
def test_refuses_entries_that_are_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=f"(?s){message}"):
        read(**changes)


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
