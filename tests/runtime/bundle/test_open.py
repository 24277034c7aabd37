"""Open bundles, sound ones and each kind that is not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffc.runtime import BundleError, load
from diffc.runtime.bundle.manifest import read_manifest

ENGINE = {"file": "graphs/unet.onnx", "builder": "tensorrt-rtx 1.7.1.116", "archs": ["sm86", "sm89"]}


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_opens_a_sound_bundle(bundle: Path) -> None:
    assert list(load(bundle).programs) == ["draw", "plain"]
    assert list(load(str(bundle)).programs) == ["draw", "plain"]


def test_imports_no_torch_and_no_compiler() -> None:
    code = "import sys, diffc.runtime; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    banned = {"torch", "onnx", "diffusers", "transformers", "safetensors"}
    assert not banned & {name.split(".")[0] for name in names}
    assert not [name for name in names if name.startswith(("diffc.compiler", "diffc.passes"))]


@pytest.mark.parametrize(
    "name", ["weights/hidden.bin", "graphs/unet.onnx", "tables.safetensors", "tokenizer/words.json"]
)
def test_refuses_a_changed_byte_a_truncated_file_and_a_missing_one(bundle: Path, name: str) -> None:
    file = bundle / name
    content = file.read_bytes()
    file.write_bytes(content[:7] + bytes([content[7] ^ 1]) + content[8:])
    with pytest.raises(BundleError, match=f"{name} was changed") as raised:
        load(bundle)
    assert raised.value.fix == "build it again" and raised.value.where == name
    file.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{name} is truncated: {len(content) - 1} bytes, not {len(content)}"):
        load(bundle)
    file.write_bytes(content + b"\0")
    with pytest.raises(BundleError, match=f"{name} is longer than it was"):
        load(bundle)
    file.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load(bundle)


def test_reads_engines_without_weights(tiny: Any, tmp_path: Path) -> None:
    engines = {"unet": ENGINE | {"file": "unet.onnx", "stripped": True}}
    made = tiny.write(tmp_path / "x.diffc", place="{}.onnx", engines=engines, schema=2)
    assert read_manifest((made / "manifest.json").read_bytes()).engines["unet"].stripped
    assert list(load(made).programs) == ["draw"]


def test_a_newer_bundle_asks_for_an_upgrade(bundle: Path) -> None:
    edit(bundle, lambda m: m.update(schema=4))
    with pytest.raises(BundleError) as raised:
        load(bundle)
    assert raised.value.fix == "upgrade diffc" and raised.value.inside == f"opening {bundle}"


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../up", "a//b", "./a", ".", "", "C:a", "a\\b", "a\0b"])
def test_refuses_paths_that_leave_the_bundle(bundle: Path, path: str) -> None:
    edit(bundle, lambda m: m["files"].update({path: {"bytes": 1, "sha256": "0" * 64}}))
    with pytest.raises(BundleError, match=r"the path '.*' leaves the bundle"):
        load(bundle)


@pytest.mark.parametrize("link", ["weights", "weights/hidden.bin"])
def test_refuses_links_to_other_content_outside_the_bundle(bundle: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    (bundle / link).rename(outside)
    (bundle / link).symlink_to(outside)
    file = outside if outside.is_file() else outside / "hidden.bin"
    content = file.read_bytes()
    for other in (content[:-1], content[:-1] + b"!"):
        file.write_bytes(other)
        with pytest.raises(BundleError, match="weights/hidden.bin is a link that leaves the bundle, to another file"):
            load(bundle)
    file.unlink()
    with pytest.raises(BundleError, match=r"weights/hidden.bin is a link that leaves .+ is missing"):
        load(bundle)


def snapshot(bundle: Path, cache: Path) -> Path:
    """Lay out a bundle as ``snapshot_download`` of a hub does: links to files named by their digests."""
    folder = cache / "snapshots" / "0123abcd" / bundle.name
    (cache / "blobs").mkdir(parents=True)
    for file in filter(Path.is_file, bundle.rglob("*")):
        blob = cache / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        link = folder / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


@pytest.mark.parametrize("target", ["ort-fp32", "ov-fp32"])
@pytest.mark.parametrize("copies", [False, True])
def test_opens_links_into_the_cache_of_a_hub(
    tiny: Any, tmp_path: Path, target: str, copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Path) -> None:
        raise OSError("Invalid cross-device link")

    if copies:
        monkeypatch.setattr(os, "link", fail)
    real = tiny.write(tmp_path / "x.diffc", place="{}.onnx", target=target)
    links = snapshot(real, tmp_path / "cache")
    sampler, request = load(links), {"seed": 0, "output": "np"}
    assert np.array_equal(sampler("red circle", **request), load(real)("red circle", **request))
    assert sampler.path == links and {path.is_symlink() for path in links.iterdir() if path.is_file()} == {True}
    own = sampler._bundle.root
    assert own.exists() and not own.is_relative_to(tmp_path / "cache")
    del sampler
    assert not own.exists()


def moved(bundle: Path) -> None:
    bundle.rename(bundle.with_name("moved.diffc"))


def deleted(bundle: Path) -> None:
    shutil.rmtree(bundle)


def replaced(bundle: Path) -> None:
    """Build another bundle of the same name: the same graphs with other weights."""
    file = bundle / "weights/hidden.bin"
    file.write_bytes(bytes(len(file.read_bytes())))


def replaced_by_a_file(bundle: Path) -> None:
    shutil.rmtree(bundle)
    bundle.write_bytes(b"")


@pytest.mark.parametrize(
    ("happens", "what"),
    [
        (moved, "was moved or deleted after it was loaded"),
        (deleted, "was moved or deleted after it was loaded"),
        (replaced, "was changed, as weights/hidden.bin shows, after it was loaded"),
        (replaced_by_a_file, "was moved or deleted after it was loaded"),
    ],
)
def test_names_a_bundle_that_is_no_longer_the_one_that_was_loaded(
    bundle: Path, happens: Callable[[Path], None], what: str
) -> None:
    sampler = load(bundle)
    happens(bundle)
    with pytest.raises(BundleError, match=what) as raised:
        sampler("red circle", seed=0)
    assert str(bundle) in raised.value.what and "load it again" in str(raised.value.fix)


def test_a_bundle_that_is_written_anew_with_the_same_content_stays_usable(bundle: Path, tmp_path: Path) -> None:
    sampler, request = load(bundle), {"seed": 0, "output": "np"}
    shutil.copytree(bundle, tmp_path / "copy")
    shutil.rmtree(bundle)
    (tmp_path / "copy").rename(bundle)
    assert np.array_equal(sampler("red circle", **request), load(bundle)("red circle", **request))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"a"', b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000, b"1" * 9999]
)
def test_refuses_a_manifest_that_is_none(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match="manifest.json|is not an object"):
        load(bundle)


def test_refuses_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle: no manifest.json"):
        load(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path / "missing.diffc")
    for content in (b"", b"PK\3\4" + bytes(1000), bytes(10240)):
        (tmp_path / "x.diffc").write_bytes(content)
        with pytest.raises(BundleError, match=r"x\.diffc is (neither a bundle nor a tar file|not a bundle)"):
            load(tmp_path / "x.diffc")


def test_names_checkpoints_and_damaged_archives(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model_index.json").write_text("{}")
    for name in ("a.safetensors", "folder"):
        with pytest.raises(BundleError, match=f"{name} is a checkpoint, not a bundle\n.*diffc build .*{name}"):
            load(tmp_path / name)
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(bundle, "b")
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:700])
    with pytest.raises(BundleError, match=r"b\.tar is a damaged tar file: "):
        load(tmp_path / "b.tar")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(BundleError, match=r"notes\.txt is neither a bundle nor a tar file of one\n"):
        load(tmp_path / "notes.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_refuses_what_may_not_be_read(bundle: Path) -> None:
    (bundle / "tables.safetensors").chmod(0)
    with pytest.raises(BundleError, match="Permission denied"):
        load(bundle)


# Tar files


def test_opens_a_tar_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    pictures = [load(bundle)("red circle", seed=0)[0].tobytes()]
    for at, name in enumerate(["tiny.diffc", "."]):
        path = tmp_path / f"{at}.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(bundle, name)
        sampler = load(path)
        assert sampler.path == path
        pictures.append(sampler("red circle", seed=0)[0].tobytes())
        root = sampler._bundle.root
        assert root.exists()
        del sampler
        assert not root.exists()
    assert len(set(pictures)) == 1


def member(name: str, **changes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("../out"),
        member("a/../../out"),
        member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", type=tarfile.LNKTYPE, linkname="manifest.json"),
        member("device", type=tarfile.CHRTYPE),
        member("pipe", type=tarfile.FIFOTYPE),
    ],
    ids=lambda info: info.name + info.linkname,
)
def test_refuses_a_tar_that_leaves_the_bundle(info: tarfile.TarInfo, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(info)
        archive.add(bundle, "tiny.diffc")
    with pytest.raises(BundleError, match="leaves the bundle|neither a file nor a folder"):
        load(path)
    assert not list(tmp_path.rglob("out"))


def test_refuses_a_tar_that_is_cut_off(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(bundle, "tiny.diffc")
    content = path.read_bytes()
    for keep in (100, 600, len(content) // 2, len(content) // 4):
        path.write_bytes(content[:keep])
        with pytest.raises(BundleError):
            load(path)


# Graphs


@pytest.mark.parametrize(
    "location", ["../outside.bin", "../../../../../../etc/passwd", "{absolute}", "weights/../../outside.bin"]
)
def test_refuses_a_graph_that_reads_outside(tiny: Any, tmp_path: Path, location: str) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(bytes(128))
    made = tiny.write(tmp_path / "tiny.diffc")
    hostile = tiny.graphs(1, location.format(absolute=outside))["text_encoder"]
    (made / "graphs/text_encoder.onnx").write_bytes(hostile)
    entry = {"bytes": len(hostile), "sha256": hashlib.sha256(hostile).hexdigest()}
    edit(made, lambda m: m["files"].update({"graphs/text_encoder.onnx": entry}))
    with pytest.raises(BundleError, match=r"graphs/text_encoder.onnx reads '.*', which is no file of the bundle"):
        load(made)


def test_refuses_a_graph_that_is_no_onnx(tiny: Any, tmp_path: Path) -> None:
    made = tiny.write(tmp_path)
    for at, content in enumerate((b"", b"\x08\x0a", b"no protocol buffer at all")):
        (made / "graphs/decoder.onnx").write_bytes(content)
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        edit(made, lambda m, entry=entry: m["files"].update({"graphs/decoder.onnx": entry}))  # type: ignore[misc]
        with pytest.raises(BundleError, match="an ONNX graph is damaged" if at == 2 else "cannot be loaded"):
            load(made)("red circle")
