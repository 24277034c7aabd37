"""Run TensorRT engines on a simulated GPU, and what takes their place where one is missing."""

from __future__ import annotations

import gc
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from diffc.runtime import BundleError, DiffcWarning, load
from diffc.runtime.bundle.open import Bundle, open_bundle
from diffc.runtime.engines.tensorrt import open_tensorrt
from tests.runtime.fake_gpu import machine, plan
from tests.tolerances import HALF, PICTURE_OF_NUMPY

RED, NOTHING = [0, 3, 5, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]


PLACE = "{}.onnx"


def picture(tiny: Any, seed: int) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = [torch.randn((1, 3, 4, 4), generator=generator).numpy() for _ in range(4)]
    made: np.ndarray = tiny.images(np.array([RED]), np.array([NOTHING]), 5.0, drawn)
    return made


BUILT = {"file": "engines/decoder.engine", "builder": "tensorrt-rtx 1.7.1.116", "archs": ["sm86", "sm89"]}


SHAPE = [1, 3, 4, 4]


def for_tensorrt(tiny: Any, folder: Path, *, content: bytes = plan(SHAPE), **changes: Any) -> Bundle:
    """Write and open a bundle whose decoder has an engine."""
    engines = {"decoder": BUILT | changes}
    made = tiny.write(folder, more={BUILT["file"]: content}, target="trt-fp16@sm86,sm89", engines=engines)
    return open_bundle(made)


def numbers() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def test_an_engine_runs_where_all_that_it_needs_is_there(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFC_CACHE", str(tmp_path / "cache"))
    here, _, trt = machine()
    session = open_tensorrt(for_tensorrt(tiny, tmp_path / "x.diffc"), "decoder", 1, here)
    assert (session.inputs, session.outputs) == ([frozenset({"z"})], 1)
    assert session.engine == "tensorrt-rtx 1.7.1.116 on NVIDIA GeForce RTX 4090"
    [image] = session.run({"z": numbers()})
    np.testing.assert_allclose(image, 1 / (1 + np.exp(-numbers())), rtol=0, atol=PICTURE_OF_NUMPY)
    assert trt.computed == 1
    assert open_tensorrt(for_tensorrt(tiny, tmp_path / "again"), "decoder", 1, here).engine == session.engine
    assert trt.compiled == 1, "what was compiled for the GPU is kept"


def test_outputs_come_in_the_order_of_the_graph(tiny: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("Sigmoid", ["z"], ["a"]), helper.make_node("Add", ["a", "one"], ["b"])]
    ports = {"z": ("float32", SHAPE)}, {"a": ("float32", SHAPE), "b": ("float32", SHAPE)}
    graph = tiny.graph(nodes, *ports, [numpy_helper.from_array(np.float32(1), "one")])
    engines = {"decoder": BUILT}
    more = {BUILT["file"]: plan(SHAPE, outputs=("a", "b"))}  # which an engine lists in another order
    made = tiny.write(tmp_path, graphs={"decoder": graph}, more=more, target="trt-fp16", engines=engines)
    here, _, _ = machine()
    a, b = open_tensorrt(open_bundle(made), "decoder", 1, here).run({"z": numbers()})
    np.testing.assert_allclose(b - a, 1, rtol=0, atol=PICTURE_OF_NUMPY)


def missing(what: str) -> Any:
    def find(*_: Any) -> Any:
        raise BundleError(what, fix="pip install it")

    return find


@pytest.mark.parametrize(
    ("changes", "lacks", "what", "fix"),
    [
        ({}, {"gpu": missing("no NVIDIA driver is installed")}, "no NVIDIA driver", "diffc build … --target ort-fp16"),
        ({"archs": ["sm120"]}, {}, "for sm120, and NVIDIA GeForce RTX 4090 is sm89", "diffc finalize {bundle}"),
        (
            {"builder": "tensorrt-rtx 1.6"},
            {},
            "built by tensorrt-rtx 1.6, and here is tensorrt-rtx 1.7.1.116",
            "diffc fi",
        ),
        ({"builder": "tensorrt 1.7.1.116"}, {}, "built by tensorrt 1.7.1.116, and here", "diffc finalize {bundle}"),
        ({}, {"library": missing("TensorRT for RTX cannot be loaded")}, "cannot be loaded", "pip install it"),
        ({}, {"cuda": missing("the bindings of CUDA cannot be imported")}, "bindings of CUDA", "pip install it"),
    ],
    ids=["gpu", "arch", "version", "kind", "library", "cuda"],
)
def test_onnx_runtime_stands_in_and_says_why_once(
    tiny: Any, tmp_path: Path, changes: dict[str, Any], lacks: dict[str, Any], what: str, fix: str
) -> None:
    bundle, here = for_tensorrt(tiny, tmp_path, **changes), replace(machine()[0], **lacks)
    with pytest.warns(DiffcWarning) as said:
        sessions = [open_tensorrt(bundle, "decoder", 1, here) for _ in range(2)]
    [text] = [str(warning.message) for warning in said]
    assert text.startswith(f"{tmp_path} runs in ONNX Runtime, on the CPU: ") and what in text
    assert "\n  fix: " in text and fix.format(bundle=tmp_path) in text
    for session in sessions:
        assert session.engine == "ONNX Runtime"
        [image] = session.run({"z": numbers()})
        np.testing.assert_allclose(image, 1 / (1 + np.exp(-numbers())), rtol=0, atol=PICTURE_OF_NUMPY)


def test_a_bundle_without_engines_is_drawn_by_onnx_runtime(tiny: Any, tmp_path: Path) -> None:
    made = tiny.write(tmp_path / "x.diffc", place=PLACE, target="trt-fp16")
    with pytest.warns(DiffcWarning, match="the bundle holds no engines\n  fix: diffc finalize"):
        assert open_tensorrt(open_bundle(made), "unet", 1, machine()[0]).engine == "ONNX Runtime"
    made = made.rename(tmp_path / "y.diffc")  # of which nothing was said yet
    sampler = load(made)
    with pytest.warns(DiffcWarning, match="runs in ONNX Runtime"):
        got = sampler("red circle", seed=0, output="np")
    np.testing.assert_allclose(got, picture(tiny, 0), rtol=0, atol=PICTURE_OF_NUMPY)
    assert sampler.engines == ("ONNX Runtime",)


def test_what_needs_no_engine_is_computed_without_a_word(tiny: Any, tmp_path: Path) -> None:
    assert open_tensorrt(for_tensorrt(tiny, tmp_path / "a"), "unet", 1, machine()[0]).engine == "ONNX Runtime"
    made = tiny.write(tmp_path / "x.diffc", target="trt-fp16")
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["graphs"]["decoder"]["component"] = ""
    (made / "manifest.json").write_text(json.dumps(manifest))
    assert open_tensorrt(open_bundle(made), "decoder", 1, machine()[0]).engine == "ONNX Runtime"


def typed(tiny: Any, folder: Path, kind: int) -> Bundle:
    """Write and open a bundle whose decoder computes in another type."""
    nodes = [
        helper.make_node("Cast", ["z"], ["narrow"], to=kind),
        helper.make_node("Sigmoid", ["narrow"], ["computed"]),
        helper.make_node("Cast", ["computed"], ["image"], to=TensorProto.FLOAT),
    ]
    graph = tiny.graph(nodes, {"z": ("float32", SHAPE)}, {"image": ("float32", SHAPE)}, [])
    return open_bundle(tiny.write(folder, graphs={"decoder": graph}, target="trt-fp16"))


def test_half_precision_is_computed_on_the_cpu_and_bfloat16_is_refused(tiny: Any, tmp_path: Path) -> None:
    nothing = replace(machine()[0], gpu=missing("no NVIDIA driver is installed"))
    with pytest.warns(DiffcWarning):
        [image] = open_tensorrt(typed(tiny, tmp_path / "a", TensorProto.FLOAT16), "decoder", 1, nothing).run(
            {"z": numbers()}
        )
    np.testing.assert_allclose(image, 1 / (1 + np.exp(-numbers())), rtol=HALF)
    with pytest.raises(BundleError, match="ONNX Runtime cannot compute graphs/decoder.onnx on the CPU: .+") as raised:
        open_tensorrt(typed(tiny, tmp_path / "b", TensorProto.BFLOAT16), "decoder", 1, nothing)
    assert raised.value.what.startswith("no NVIDIA driver is installed, and ONNX Runtime")
    assert str(raised.value.fix).startswith("run it where a GPU is")


@pytest.mark.parametrize(
    ("builder", "archs"),
    [
        ("tensorrt", ["sm89"]),
        ("tensorrt 10\n.1", ["sm89"]),
        ("other 10.1", ["sm89"]),
        ("tensorrt 10.1", []),
        ("tensorrt 10.1", ["sm89", "x"]),
    ],
)
def test_what_is_no_engine_of_tensorrt_is_refused_before_a_library_is_loaded(
    tiny: Any, tmp_path: Path, builder: str, archs: list[str]
) -> None:
    here = replace(machine()[0], library=missing("a library was looked for"))
    bundle = for_tensorrt(tiny, tmp_path, builder=builder, archs=archs)
    with pytest.warns(DiffcWarning, match="is no engine of TensorRT"):
        assert open_tensorrt(bundle, "decoder", 1, here).engine == "ONNX Runtime"


@pytest.mark.parametrize("content", [b"", b"{", plan(SHAPE)[:-1]], ids=len)
def test_a_damaged_engine_is_refused_with_the_command(tiny: Any, tmp_path: Path, content: bytes) -> None:
    bundle, (here, _, _) = for_tensorrt(tiny, tmp_path, content=content), machine()
    with pytest.raises(BundleError, match="tensorrt-rtx 1.7.1.116 refuses engines/decoder.engine: .+") as raised:
        open_tensorrt(bundle, "decoder", 1, here)
    assert (raised.value.where, raised.value.fix) == ("engines/decoder.engine", f"diffc finalize {tmp_path}")


def test_too_little_memory_of_the_gpu_is_said(tiny: Any, tmp_path: Path) -> None:
    here, _, _ = machine(room=300)
    with pytest.raises(
        BundleError, match="RTX 4090 cannot run .*: cudaMalloc gave cudaErrorMemoryAllocation"
    ) as raised:
        open_tensorrt(for_tensorrt(tiny, tmp_path), "decoder", 1, here)
    assert str(raised.value.fix).startswith("free the GPU's memory")


def stripped(tiny: Any, folder: Path, *, factor: float = 3, lacks: str = "w") -> Bundle:
    """Write and open a bundle whose decoders, two of one file and engine, multiply by a number that lies beside it."""
    nodes = [helper.make_node("Sigmoid", ["z"], ["s"]), helper.make_node("Mul", ["s", "w"], ["image"])]
    ports = {"z": ("float32", SHAPE)}, {"image": ("float32", SHAPE)}
    number = np.full(1, factor, np.float32)
    graph = tiny.graph(nodes, *ports, [tiny.external("w", "weights/decoder.bin", number)])
    more = {BUILT["file"]: plan(SHAPE, lacks=(lacks,)), "weights/decoder.bin": number.tobytes()}
    programs = {"draw": tiny.program(1), "plain": tiny.program(1, "plain").replace("decoder", "decoder_2")}
    engines = dict.fromkeys(("decoder", "decoder_2"), BUILT | {"stripped": True})
    made = tiny.write(
        folder,
        place=PLACE,
        graphs={"decoder": graph, "decoder_2": graph},
        more=more,
        programs=programs,
        target="trt-fp16",
        engines=engines,
    )
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["graphs"]["decoder_2"]["file"] = "decoder.onnx"
    (made / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(made)


def test_an_engine_without_weights_takes_those_of_its_graph_once(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFC_CACHE", str(tmp_path / "cache"))
    bundle, (here, _, trt) = stripped(tiny, tmp_path / "x.diffc"), machine()
    sessions = [open_tensorrt(bundle, graph, 1, here) for graph in ("decoder", "decoder_2")]
    assert trt.refitted == [str(bundle.root / "decoder.onnx")]
    for session in sessions:
        [image] = session.run({"z": numbers()})
        np.testing.assert_allclose(image, 3 / (1 + np.exp(-numbers())), rtol=0, atol=PICTURE_OF_NUMPY)
    del session, sessions
    gc.collect()
    open_tensorrt(bundle, "decoder", 1, here)
    assert len(trt.refitted) == 2, "it is held no longer than it is used"


def test_models_that_share_a_plan_keep_their_own_weights(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFC_CACHE", str(tmp_path / "cache"))
    here, _, trt = machine()
    bundles = [stripped(tiny, tmp_path / f"{factor}.diffc", factor=factor) for factor in (2, 5)]
    assert len({bundle.manifest.files[BUILT["file"]].sha256 for bundle in bundles}) == 1
    assert len({bundle.graph("decoder") for bundle in bundles}) == 1
    sessions = [open_tensorrt(bundle, "decoder", 1, here) for bundle in bundles]
    for session, factor in zip(sessions, (2, 5), strict=True):
        [image] = session.run({"z": numbers()})
        np.testing.assert_allclose(image, factor / (1 + np.exp(-numbers())), rtol=0, atol=PICTURE_OF_NUMPY)
    assert len(trt.refitted) == 2


def test_missing_weights_are_said_with_the_command(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as raised:
        open_tensorrt(stripped(tiny, tmp_path, lacks="other"), "decoder", 1, machine()[0])
    assert str(raised.value).splitlines() == [
        "tensorrt-rtx 1.7.1.116 refuses engines/decoder.engine: decoder.onnx lacks 1 of its 1 weights, other first:"
        " refitted 0 weights out of 1",
        "  at:  engines/decoder.engine",
        f"  fix: diffc finalize {tmp_path}",
    ]


def test_an_engine_with_weights_that_is_said_to_have_none_is_refused(tiny: Any, tmp_path: Path) -> None:
    made = stripped(tiny, tmp_path).root
    (made / BUILT["file"]).write_bytes(plan(SHAPE))
    manifest = json.loads((made / "manifest.json").read_text())
    digest = hashlib.sha256(plan(SHAPE)).hexdigest()
    manifest["files"][BUILT["file"]] = {"bytes": len(plan(SHAPE)), "sha256": digest}
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="refuses engines/decoder.engine: it was built with its weights"):
        open_tensorrt(open_bundle(made), "decoder", 1, machine()[0])


def test_changed_weights_are_refused_before_an_engine_takes_them(tiny: Any, tmp_path: Path) -> None:
    made = stripped(tiny, tmp_path).root
    (made / "weights/decoder.bin").write_bytes(np.full(1, 4, np.float32).tobytes())
    with pytest.raises(BundleError, match=r"weights/decoder.bin was changed"):
        open_bundle(made)


def test_onnx_runtime_stands_in_for_an_engine_without_weights(tiny: Any, tmp_path: Path) -> None:
    here, _, trt = machine(version="1.8")
    with pytest.warns(DiffcWarning, match="built by tensorrt-rtx 1.7.1.116, and here is tensorrt-rtx 1.8"):
        session = open_tensorrt(stripped(tiny, tmp_path), "decoder", 1, here)
    [image] = session.run({"z": numbers()})
    np.testing.assert_allclose(image, 3 / (1 + np.exp(-numbers())), rtol=0, atol=PICTURE_OF_NUMPY)
    assert (session.engine, trt.refitted) == ("ONNX Runtime", [])
