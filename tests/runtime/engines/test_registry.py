"""Compute with each engine what NumPy computes, and refuse what an engine must not read."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from diffc.runtime import BundleError, load
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.engines import openvino
from diffc.runtime.engines.ort import OnnxRuntime
from diffc.runtime.engines.registry import check_engine, find_engine, open_graph
from diffc.runtime.engines.tensorrt import TensorRT
from tests.tolerances import PICTURE_OF_NUMPY

RED, NOTHING = [0, 3, 5, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]


PLACE = "{}.onnx"


TARGETS = ("ort-fp32", "ov-fp32")


def picture(tiny: Any, seed: int) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = [torch.randn((1, 3, 4, 4), generator=generator).numpy() for _ in range(4)]
    made: np.ndarray = tiny.images(np.array([RED]), np.array([NOTHING]), 5.0, drawn)
    return made


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [None, 1])
def test_each_engine_draws_what_the_program_says(tiny: Any, tmp_path: Path, target: str, threads: int | None) -> None:
    sampler = load(tiny.write(tmp_path / "x.diffc", place=PLACE, target=target), threads=threads)
    for seed in (0, 1):
        got = sampler("red circle", seed=seed, output="np")
        np.testing.assert_allclose(got, picture(tiny, seed), rtol=0, atol=PICTURE_OF_NUMPY)


@pytest.mark.parametrize("target", TARGETS)
def test_threads_share_an_opened_graph(tiny: Any, tmp_path: Path, target: str) -> None:
    sampler, got = load(tiny.write(tmp_path / "x.diffc", place=PLACE, target=target), threads=1), {}

    def draw(seed: int) -> None:
        got[seed] = [sampler("red circle", seed=seed, output="np") for _ in range(20)]

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        for each in got[seed]:
            np.testing.assert_allclose(each, picture(tiny, seed), rtol=0, atol=PICTURE_OF_NUMPY)


@pytest.mark.parametrize("target", TARGETS)
def test_each_engine_computes_float64_as_such(tiny: Any, tmp_path: Path, target: str) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Add", ["wide", "little"], ["sum"]),
        helper.make_node("Sub", ["sum", "one"], ["rest"]),
        helper.make_node("Cast", ["rest"], ["out"], to=TensorProto.FLOAT),
    ]
    ports = {"x": ("float32", [4])}, {"out": ("float32", [4])}
    numbers = [numpy_helper.from_array(np.float64(value), name) for name, value in (("little", 2**-40), ("one", 1))]
    made = tiny.write(
        tmp_path / "x.diffc", place=PLACE, graphs={"add": tiny.graph(nodes, *ports, numbers)}, target=target
    )
    [got] = open_graph(open_bundle(made), "add", 1).run({"x": np.ones(4, np.float32)})
    assert (got == 2**-40).all()


def test_a_target_without_an_engine_is_refused_with_the_known_ones(tiny: Any, tmp_path: Path) -> None:
    for target, what in (("gpu-fp16", "unknown engine 'gpu'"), ("ov-fp1", "OpenVINO runs no precision 'fp1'")):
        made = tiny.write(tmp_path / f"{target}.diffc", target=target)
        with pytest.raises(BundleError, match=what) as raised:
            load(made)("red circle", seed=0)
        assert "onnx, ort, ov, torchtrt, trt" in str(raised.value.fix) or target == "ov-fp1"


def test_a_graph_of_a_kind_that_the_engine_does_not_open_is_refused(tiny: Any, tmp_path: Path) -> None:
    made = tiny.write(tmp_path / "x.diffc")
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["graphs"]["unet"]["kind"] = "coreml"
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="opens no graphs of the kind 'coreml'"):
        open_graph(open_bundle(made), "unet", 1)


def with_encoder(tiny: Any, folder: Path, target: str, location: str, **entries: str) -> Path:
    """Write a bundle whose text encoder reads its table from elsewhere."""
    [tensor] = [tiny.external("table", location, np.zeros((8, 4), np.float32))]
    for entry in tensor.external_data:
        entry.value = entries.get(entry.key, entry.value)
    ports = {"input_ids": ("int64", [1, 8])}, {"hidden": ("float32", [1, 8, 4])}
    node = helper.make_node("Gather", ["table", "input_ids"], ["hidden"], axis=0)
    graph = tiny.graph([node], *ports, [tensor])
    made: Path = tiny.write(folder, place=PLACE, graphs={"text_encoder": graph}, target=target)
    return made


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd", "weights/../../outside.bin"])
def test_no_engine_reads_outside(tiny: Any, tmp_path: Path, target: str, location: str) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(128))
    with pytest.raises(BundleError, match="which is no file of the bundle"):
        load(with_encoder(tiny, tmp_path / "x.diffc", target, location))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "entries",
    [{"offset": "4096"}, {"offset": "64"}, {"length": str(2**40)}, {"offset": str(2**63)}, {"offset": "-8"}],
    ids=str,
)
def test_no_engine_reads_behind_the_end_of_a_file(
    tiny: Any, tmp_path: Path, target: str, entries: dict[str, str]
) -> None:
    sampler = load(with_encoder(tiny, tmp_path / "x.diffc", target, "weights/hidden.bin", **entries))
    with pytest.raises(BundleError, match=r"text_encoder.onnx cannot be loaded: .+"):
        sampler("red circle", seed=0)


@pytest.mark.parametrize("target", TARGETS)
def test_no_engine_takes_a_file_for_an_address(tiny: Any, tmp_path: Path, target: str) -> None:
    name = "*/_ORT_MEM_ADDR_/*"
    made = with_encoder(tiny, tmp_path / "x.diffc", target, name)
    (made / name).parent.mkdir(parents=True)
    (made / name).write_bytes(bytes(128))
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 128, "sha256": hashlib.sha256(bytes(128)).hexdigest()}
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        load(made)("red circle", seed=0)


def test_each_target_has_its_engine() -> None:
    assert check_engine("ort-fp16") is check_engine("onnx-fp32") is OnnxRuntime
    assert check_engine("ov-bf16") is openvino.OpenVino
    assert check_engine("trt-w4a8@sm86,sm89") is find_engine("torchtrt") is TensorRT


@pytest.mark.parametrize("target", TARGETS)
def test_bundles_that_hold_the_same_graph_share_its_session(tiny: Any, tmp_path: Path, target: str) -> None:
    first, second = (
        open_bundle(tiny.write(tmp_path / name, place=PLACE, target=target, programs={name: tiny.program(1, name)}))
        for name in ("a", "b")
    )
    session = open_graph(first, "unet", 1)
    assert open_graph(second, "unet", 1) is session
    assert open_graph(first, "unet", 2) is not session and open_graph(first, "decoder", 1) is not session


def other_target(bundle: Path, manifest: dict[str, Any]) -> None:
    manifest["target"] = "onnx-fp32"


def other_weights(bundle: Path, manifest: dict[str, Any]) -> None:
    file, entry = bundle / "weights/hidden.bin", manifest["files"]["weights/hidden.bin"]
    file.write_bytes(bytes(entry["bytes"]))
    entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()


def other_range(bundle: Path, manifest: dict[str, Any]) -> None:
    manifest["graphs"]["text_encoder"]["reduced_range"] = True


@pytest.mark.parametrize("change", [other_target, other_weights, other_range])
def test_graphs_of_other_weights_targets_and_entries_share_nothing(tiny: Any, tmp_path: Path, change: Any) -> None:
    made, other = (tiny.write(tmp_path / name) for name in ("a", "b"))
    first = open_graph(open_bundle(made), "text_encoder", 1)
    assert open_graph(open_bundle(other), "text_encoder", 1) is first
    manifest = json.loads((other / "manifest.json").read_text())
    change(other, manifest)
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert open_graph(open_bundle(other), "text_encoder", 1) is not first
