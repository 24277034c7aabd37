"""Define bundles that are opened or refused: the bundle of a sampler, and changes to its files."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.format.authoring import model
from tests.runtime.conftest import BIAS, tiny_graphs, word_tokenizer

OPENED, REFUSED, REFUSED_WHEN_RUN = "opened", "refused", "refused when run"
ENGINE = {"file": "graphs/unet.onnx", "builder": "tensorrt-rtx 1.7.1.116", "archs": ["sm86", "sm120"]}
ROOT = Path(__file__).parent / "bundles" / "sampler" / "bundle"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Opening:
    """Change the bundle: ``overlay`` files replace its own, some are removed, some become links; or it is a tar."""

    name: str
    expected: str
    overlay: Mapping[str, bytes] = field(default_factory=dict)
    remove: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    tar: bytes = b""


def opening_cases() -> Iterator[Opening]:
    """Yield every case."""
    yield Opening("the bundle", OPENED)
    yield from _texts()
    yield from _manifests()
    yield from _paths()
    yield from _files()
    yield from _contents()
    yield from _tars()


def _manifest() -> Manifest:
    loaded: Manifest = json.loads((ROOT / "manifest.json").read_text())
    return loaded


def _text(manifest: Manifest) -> bytes:
    return (json.dumps(manifest, indent=1) + "\n").encode()


def _edited(name: str, expected: str, edit: Callable[[Manifest], object]) -> Opening:
    manifest = copy.deepcopy(_manifest())
    edit(manifest)
    return Opening(name, expected, {"manifest.json": _text(manifest)})


def _replaced(name: str, expected: str, files: Mapping[str, bytes]) -> Opening:
    """Replace files, with their digests."""
    manifest = _manifest()
    for path, content in files.items():
        manifest["files"][path] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return Opening(name, expected, {**files, "manifest.json": _text(manifest)})


def _texts() -> Iterator[Opening]:
    text = (ROOT / "manifest.json").read_bytes()
    schema = b'"schema": %d,' % _manifest()["schema"]
    for name, content in (
        ("no manifest text", b""),
        ("half a manifest", text[: len(text) // 2]),
        ("a manifest that is a list", b"[]"),
        ("a manifest that is no UTF-8", text.replace(b"0.1.0", b"\xff")),
        ("a key twice", text.replace(schema, schema + schema)),
        ("a key twice inside", text.replace(b'"bytes":', b'"bytes": 1, "bytes":', 1)),
        ("a manifest of nested lists", b"[" * 100_000),
    ):
        yield Opening(name, REFUSED, {"manifest.json": content})
    yield Opening("no manifest", REFUSED, remove=["manifest.json"])


def _manifests() -> Iterator[Opening]:
    yield _edited("an unknown key", OPENED, lambda m: m.update(more={"a": 1}))
    yield _edited("an unknown key of a graph", OPENED, lambda m: m["graphs"]["unet"].update(more=1))
    yield _edited(
        "no key that may be left out", OPENED, lambda m: [m.pop(k) for k in ("diffc", "engines", "provenance")]
    )
    yield _edited("an engine beside a graph", OPENED, lambda m: m.update(engines={"unet": ENGINE}))
    facts = {"task": "text-to-image", "steps": 3, "size": [4, 4], "variant": "unguided"}
    yield _edited("facts of a program", OPENED, lambda m: m["programs"]["plain"].update(facts))
    yield _edited("no requested size", OPENED, lambda m: m["programs"]["plain"].update(facts | {"size": None}))
    for schema in (1, 2):

        def edit(manifest: Manifest, schema: int = schema) -> None:
            manifest |= {"schema": schema, "programs": {n: p["text"] for n, p in manifest["programs"].items()}}

        yield _edited(f"schema {schema}", OPENED, edit)
    edits: dict[str, Callable[[Manifest], object]] = {
        "a newer schema": lambda m: m.update(schema=99),
        "schema 0": lambda m: m.update(schema=0),
        "a schema that is true": lambda m: m.update(schema=True),
        "a schema that is a text": lambda m: m.update(schema="1"),
        "no schema": lambda m: m.pop("schema"),
        "no target": lambda m: m.pop("target"),
        "a target that is a number": lambda m: m.update(target=5),
        "no programs": lambda m: m.pop("programs"),
        "an empty object of programs": lambda m: m.update(programs={}),
        "programs in a list": lambda m: m.update(programs=[]),
        "a program whose digest is another's": lambda m: m["programs"]["plain"].update(sha256="0" * 64),
        "a text that is no program": lambda m: m["programs"]["plain"].update(text="program plain"),
        "a program that is not executable": lambda m: m["programs"]["plain"].update(
            text=m["programs"]["plain"]["text"].replace("= split(y0, axis=0)", "= aten.split.Tensor(y0, 1)")
        ),
        "a program as schema 2 has it": lambda m: m["programs"].update(plain=m["programs"]["plain"]["text"]),
        "a program without a text": lambda m: m["programs"].update(plain={"task": "text-to-image", "steps": 3}),
        "schema 2 with programs of schema 3": lambda m: m.update(schema=2),
        "a task without steps": lambda m: m["programs"]["plain"].update(task="text-to-image"),
        "no steps": lambda m: m["programs"]["plain"].update(task="text-to-image", steps=0),
        "a size of one edge": lambda m: m["programs"]["plain"].update(task="text-to-image", steps=3, size=[4]),
        "an unknown variant": lambda m: m["programs"]["plain"].update(task="text-to-image", steps=3, variant="x"),
        "a kind that is a number": lambda m: m["graphs"]["unet"].update(kind=1),
        "a graph that the bundle lacks": lambda m: m["graphs"].pop("unet"),
        "a tokenizer that the bundle lacks": lambda m: m["tokenizers"].clear(),
        "graphs without objects": lambda m: m.update(graphs={"unet": "graphs/unet.onnx"}),
        "a graph without a file": lambda m: m["graphs"]["unet"].pop("file"),
        "a graph outside": lambda m: m["graphs"]["unet"].update(file="/etc/passwd"),
        "a graph of an unlisted file": lambda m: m["graphs"]["unet"].update(file="graphs/missing.onnx"),
        "a tokenizer outside": lambda m: m["tokenizers"].update(words="../words.json"),
        "engines that are null": lambda m: m.update(engines=None),
        "engines in a list": lambda m: m.update(engines=["unet"]),
        "an engine of no graph": lambda m: m.update(engines={"missing": ENGINE}),
        "an engine without a file": lambda m: m.update(engines={"unet": {"builder": ENGINE["builder"]}}),
        "an engine outside": lambda m: m.update(engines={"unet": ENGINE | {"file": "../x"}}),
        "architectures in a text": lambda m: m.update(engines={"unet": ENGINE | {"archs": "sm86"}}),
        "stripped that is a number": lambda m: m.update(engines={"unet": ENGINE | {"stripped": 1}}),
        "a stripped engine of a graph in a folder": lambda m: m.update(
            schema=max(2, m["schema"]), engines={"unet": ENGINE | {"stripped": True}}
        ),
    }
    for name, edit in edits.items():
        yield _edited(name, REFUSED, edit)
    yield _edited("a graph of the kind onnx", OPENED, lambda m: m["graphs"]["unet"].update(kind="onnx"))
    yield _edited("a graph of another kind", REFUSED_WHEN_RUN, lambda m: m["graphs"]["unet"].update(kind="abacus"))
    yield _edited("a back end that nothing runs", REFUSED_WHEN_RUN, lambda m: m.update(target="abacus-fp32"))


def _paths() -> Iterator[Opening]:
    paths = {
        "an absolute path": "/etc/passwd",
        "a path that goes up": "../up",
        "a path that goes up inside": "a/../../up",
        "a path with an empty name": "a//b",
        "a path with a point": "./a",
        "a path that is a point": ".",
        "a path that ends with a slash": "a/",
        "an empty path": "",
        "a drive": "C:a",
        "a backslash": "a\\b",
        "a NUL": "a\0b",
    }
    empty = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    for name, path in paths.items():

        def edit(manifest: Manifest, path: str = path) -> None:
            manifest["files"][path] = empty

        yield _edited(name, REFUSED, edit)


def _files() -> Iterator[Opening]:
    file = "weights/hidden.bin"
    content = (ROOT / file).read_bytes()
    yield Opening("a changed byte", REFUSED, {file: bytes([content[0] ^ 1]) + content[1:]})
    yield Opening("a file cut off", REFUSED, {file: content[:-1]})
    yield Opening("a longer file", REFUSED, {file: content + b"\0"})
    for missing in (file, "graphs/unet.onnx", "tables.safetensors", "tokenizer/words.json"):
        yield Opening(f"{missing} is missing", REFUSED, remove=[missing])
    yield Opening("a file that is not listed", OPENED, {"more/file.bin": content})
    yield Opening("a link inside", OPENED, {"more/hidden.bin": content}, [file], {file: "../more/hidden.bin"})
    yield Opening("a link outside to the right content", OPENED, remove=[file], links={file: "../../outside.bin"})
    for path in ("tables.safetensors", "tokenizer/words.json"):
        up = "../" * (path.count("/") + 1)
        yield Opening(
            f"{path} links to other content outside", REFUSED, remove=[path], links={path: f"{up}outside.bin"}
        )
    yield Opening("a link to nothing", REFUSED, remove=[file], links={file: "../../nothing.bin"})
    yield Opening("a link to a device", REFUSED, remove=[file], links={file: "/dev/zero"})
    entries: dict[str, dict[str, object]] = {
        "a negative size": {"bytes": -1},
        "a size with a point": {"bytes": 128.0},
        "no size": {"bytes": None},
        "a short digest": {"sha256": "0" * 63},
        "a digest in capitals": {"sha256": hashlib.sha256(content).hexdigest().upper()},
        "another digest": {"sha256": "0" * 64},
    }
    for name, change in entries.items():

        def edit(manifest: Manifest, change: dict[str, object] = change) -> None:
            manifest["files"][file].update(change)

        yield _edited(name, REFUSED, edit)


def _tables(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _contents() -> Iterator[Opening]:
    bias = {"dtype": "F32", "shape": [3, 1, 1], "data_offsets": [0, 12]}
    data = BIAS.tobytes()
    more = {"dtype": "U8", "shape": [1], "data_offsets": [12, 13]}
    tables = {
        "a table of no program": (OPENED, _tables({"bias": bias, "more": more}, data + b"\0")),
        "metadata of tables": (OPENED, _tables({"__metadata__": {"a": "b"}, "bias": bias}, data)),
        "tables without the table": (REFUSED, save({"more": BIAS})),
        "a table of another type": (REFUSED, save({"bias": BIAS.astype(np.float64)})),
        "a table of another shape": (REFUSED, save({"bias": BIAS.reshape(3)})),
        "an empty file of tables": (REFUSED, b""),
        "a header that is too long": (REFUSED, struct.pack("<Q", 2**40) + b"{}"),
        "a header that is no JSON": (REFUSED, _tables(b"{", data)),
        "a table twice": (REFUSED, _tables(b'{"bias": %b, "bias": %b}' % ((json.dumps(bias).encode(),) * 2), data)),
        "a gap between tables": (
            REFUSED,
            _tables({"bias": bias, "more": more | {"data_offsets": [13, 14]}}, data + b"\0\0"),
        ),
        "tables that overlap": (REFUSED, _tables({"bias": bias, "more": more | {"data_offsets": [11, 12]}}, data)),
        "bytes of no table": (REFUSED, _tables({"bias": bias}, data + b"\0")),
        "a table beyond the end": (REFUSED, _tables({"bias": bias}, data[:-1])),
        "a table of an unknown type": (
            REFUSED,
            _tables({"bias": bias, "more": more | {"dtype": "F8_E4M3"}}, data + b"\0"),
        ),
        "a table with too few bytes": (REFUSED, _tables({"bias": bias, "more": more | {"shape": [2]}}, data + b"\0")),
        "a negative size of a table": (REFUSED, _tables({"bias": bias, "more": more | {"shape": [-1]}}, data + b"\0")),
    }
    for name, (expected, content) in tables.items():
        yield _replaced(name, expected, {"tables.safetensors": content})
    encoders = {location: tiny_graphs(1, location)["text_encoder"] for location in ("weights/x.bin", "../hidden.bin")}
    graphs = {
        "external data of an unlisted file": (REFUSED, "text_encoder", encoders["weights/x.bin"]),
        "external data outside": (REFUSED, "text_encoder", encoders["../hidden.bin"]),
        "a graph that is no protocol buffer": (REFUSED, "decoder", b"\xff" * 40),
        "a graph with other inputs": (
            REFUSED_WHEN_RUN,
            "decoder",
            model("g (float[1,3,4,4] x) => (float[1,3,4,4] image) { image = Sigmoid(x) }"),
        ),
        "a graph with more outputs": (
            REFUSED_WHEN_RUN,
            "decoder",
            model("g (float[1,3,4,4] z) => (float[1,3,4,4] a, float[1,3,4,4] b) { a = Sigmoid(z) b = Tanh(z) }"),
        ),
        "a graph with another result": (
            REFUSED_WHEN_RUN,
            "decoder",
            model("g (float[1,3,4,4] z) => (float[1,4,3,4] image) { image = Transpose<perm=[0,2,1,3]>(z) }"),
        ),
        "a graph with another type": (
            REFUSED_WHEN_RUN,
            "decoder",
            model("g (float[1,3,4,4] z) => (double[1,3,4,4] image) { image = Cast<to=11>(z) }"),
        ),
    }
    for name, (expected, graph, content) in graphs.items():
        yield _replaced(name, expected, {f"graphs/{graph}.onnx": content})
    words = json.loads(word_tokenizer())
    many = copy.deepcopy(words)
    many["post_processor"]["single"] *= 4
    many["post_processor"]["single"] = [p for p in many["post_processor"]["single"] if "SpecialToken" in p] + words[
        "post_processor"
    ]["single"]
    yield _replaced("a file that is no tokenizer", REFUSED, {"tokenizer/words.json": b"{}"})
    yield _replaced(
        "more special tokens than fit", REFUSED_WHEN_RUN, {"tokenizer/words.json": json.dumps(many).encode()}
    )


def _tar(prefix: str, *more: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for info in more:
            archive.addfile(info)
        for path in sorted(ROOT.rglob("*")):
            if path.is_file():
                info = tarfile.TarInfo(prefix + path.relative_to(ROOT).as_posix())
                info.size = path.stat().st_size
                archive.addfile(info, io.BytesIO(path.read_bytes()))
    return stream.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _tars() -> Iterator[Opening]:
    yield Opening("a tar file", OPENED, tar=_tar(""))
    yield Opening("a tar file of a folder", OPENED, tar=_tar("x.diffc/"))
    yield Opening("a tar file cut off", REFUSED, tar=_tar("")[:2048])
    yield Opening("a tar file with a path that goes up", REFUSED, tar=_tar("", _member("../up")))
    yield Opening("a tar file with a link", REFUSED, tar=_tar("", _member("link", tarfile.SYMTYPE, "/etc/passwd")))
    yield Opening("a tar file with a hard link", REFUSED, tar=_tar("", _member("l", tarfile.LNKTYPE, "manifest.json")))
    yield Opening("a tar file with a pipe", REFUSED, tar=_tar("", _member("pipe", tarfile.FIFOTYPE)))
    yield Opening("a file that is no tar file", REFUSED, tar=b"PK\3\4" + bytes(1000))
