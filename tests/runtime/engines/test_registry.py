"""Draw with each engine what NumPy draws, and refuse what an engine must not read."""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from diffc.compiler import capture, write_bundle
from diffc.compiler.metrics import sqnr
from diffc.passes.quantize import OF_TARGETS, RECIPES
from diffc.runtime import BundleError, DiffcWarning, load
from diffc.runtime.bundle.open import Bundle, open_bundle
from diffc.runtime.engines import registry
from diffc.runtime.engines.registry import (
    advice,
    check_engine,
    multiplies_bytes,
    open_graph,
    open_tensorrt,
    openvino_core,
    reason,
    recommended,
)
from tests.runtime.fake_gpu import machine, plan
from tests.tolerances import HALF, LARGE_BYTES_SQNR, PICTURE_OF_NUMPY

RED, NOTHING = [0, 3, 5, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]
PLACE = "{}.onnx"
TARGETS = ("ort-fp32", "ov-fp32")


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process find no OpenVINO."""
    openvino_core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    yield
    openvino_core.cache_clear()


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


def product(tiny: Any, folder: Path, target: str, component: str) -> np.ndarray:
    """Multiply by a matrix of numbers that bfloat16 cannot hold."""
    factor = numpy_helper.from_array(np.full((64, 64), 1 + 2**-12, np.float32), "factor")
    ports = {"x": ("float32", [8, 64])}, {"y": ("float32", [8, 64])}
    graph = tiny.graph([helper.make_node("MatMul", ["x", "factor"], ["y"])], *ports, [factor])
    program = tiny.program(1)
    entry = {"file": "product.onnx", "component": component}
    made = tiny.write(folder, place=PLACE, graphs={"product": graph}, programs={"draw": program}, target=target)
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["graphs"]["product"] = entry
    (made / "manifest.json").write_text(json.dumps(manifest))
    [found] = open_graph(open_bundle(made), "product", 1).run({"x": np.ones((8, 64), np.float32)})
    return found


def test_openvino_computes_in_the_type_that_the_target_says(tiny: Any, tmp_path: Path) -> None:
    exact = 64 * (1 + 2**-12)
    np.testing.assert_allclose(product(tiny, tmp_path / "a", "ov-fp32", "unet"), exact, rtol=1e-7)
    np.testing.assert_allclose(product(tiny, tmp_path / "b", "ov-fp16", "unet"), exact, rtol=1e-7)
    np.testing.assert_allclose(product(tiny, tmp_path / "c", "ov-bf16", ""), exact, rtol=1e-7)
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU does not compute in bfloat16")
    np.testing.assert_array_equal(product(tiny, tmp_path / "d", "ov-bf16", "unet"), 64.0)


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


@pytest.mark.parametrize(("heads", "tokens"), [(8, 8), (8, 5), (1, 1)])
def test_attention_with_as_many_heads_as_tokens(tiny: Any, tmp_path: Path, heads: int, tokens: int) -> None:
    """OpenVINO's fused attention would write over the queries."""
    size = [1, heads, tokens, 16]
    nodes = [helper.make_node("Relu", [name], [f"{name}_"]) for name in "qkv"]
    nodes += [
        helper.make_node("Attention", ["q_", "k_", "v_"], ["attended"]),
        helper.make_node("Transpose", ["attended"], ["out"], perm=[0, 2, 1, 3]),
    ]
    ports = {name: ("float32", size) for name in "qkv"}, {"out": ("float32", [1, tokens, heads, 16])}
    graph = tiny.graph(nodes, *ports, [], opset=23)
    made = tiny.write(tmp_path / "x.diffc", place=PLACE, graphs={"attention": graph}, target="ov-fp32")
    draws = np.random.default_rng(0).standard_normal((3, *size)).astype(np.float32)
    [got] = open_graph(open_bundle(made), "attention", 1).run(dict(zip("qkv", draws, strict=True)))
    q, k, v = torch.from_numpy(draws).relu()
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=PICTURE_OF_NUMPY)


def test_a_missing_openvino_is_named_with_the_command(tiny: Any, tmp_path: Path, without_openvino: None) -> None:
    made = tiny.write(tmp_path / "x.diffc", place=PLACE, target="ov-fp32")
    assert load(made).target == "ov-fp32", "it opens, to be inspected"
    with pytest.raises(BundleError, match="OpenVINO cannot be imported") as raised:
        load(made)("red circle", seed=0)
    assert raised.value.fix == "pip install 'diffc[openvino]', or build for the target ort-fp32"


def test_a_target_without_an_engine_is_refused(tiny: Any, tmp_path: Path) -> None:
    for target in ("gpu-fp16", "ov-fp1"):
        made = tiny.write(tmp_path / f"{target}.diffc", target=target)
        with pytest.raises(BundleError, match=f"no engine of this diffc runs '{target}'"):
            load(made)("red circle", seed=0)


def test_importing_the_engines_imports_none_and_openvino_reports_nothing(tmp_path: Path) -> None:
    code = """if True:
        import sys
        seen = []
        def watch(event, args):
            if event.startswith("socket.") and event != "socket.__new__" or event == "os.fork":
                seen.append(event)
        sys.addaudithook(watch)
        from diffc.runtime.engines.registry import openvino_core
        assert not {"onnxruntime", "openvino"} & sys.modules.keys(), "imported too early"
        openvino_core()
        from openvino.tools.ovc import telemetry
        telemetry.send_event("ov", "import", "again")
        assert "openvino" in sys.modules and not {"openvino_telemetry"} & sys.modules.keys()
        assert not seen, seen
    """
    environment = {"HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


# TensorRT, with a stand-in for the GPU


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
    assert text.startswith(f"{tmp_path} is drawn by ONNX Runtime, on the CPU: ") and what in text
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
    with pytest.warns(DiffcWarning, match="is drawn by ONNX Runtime"):
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


# Engines without weights


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


# Bundles that mean harm


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


def test_openvino_reads_graphs_that_are_called_onnx(tiny: Any, tmp_path: Path) -> None:
    made = tiny.write(tmp_path / "x.diffc", place="{}.xml", target="ov-fp32")
    with pytest.raises(BundleError, match=r"text_encoder.xml is no .onnx file"):
        load(made)("red circle", seed=0)


# Advice


@pytest.mark.parametrize(
    ("flags", "machine", "backend"),
    [
        ("avx2 avx512f", "x86_64", "ov"),
        ("avx2", "x86_64", "ort"),
        ("avx512f", "AMD64", "ov"),
        ("sve", "aarch64", "ort"),
    ],
)
def test_openvino_is_recommended_where_it_was_measured(
    monkeypatch: pytest.MonkeyPatch, flags: str, machine: str, backend: str
) -> None:
    monkeypatch.setattr(registry, "_cpu_flags", lambda: set(flags.split()))
    monkeypatch.setattr(registry.platform, "machine", lambda: machine)
    assert recommended() == backend
    said = advice("ort-bf16", 1 << 30)
    assert (said is not None) == (backend == "ov")
    assert said is None or said.endswith("build for ov-bf16")
    monkeypatch.setattr(registry, "openvino_version", lambda: None)
    assert said is None or str(advice("ort-bf16", 1 << 30)).endswith(
        "build for ov-bf16 (pip install 'diffc[openvino]')"
    )
    assert advice("ov-bf16", 1 << 30) is advice("ort-bf16", 1 << 20) is None


@pytest.mark.parametrize(
    ("flags", "machine", "exact"),
    [
        ("avx2 avx512f avx512_vnni", "x86_64", True),
        ("avx2 avx_vnni", "AMD64", True),
        ("avx2 avx512f", "x86_64", False),
        ("", "AMD64", False),
        ("asimd", "aarch64", True),
    ],
)
def test_bytes_are_multiplied_where_their_sums_have_room(
    monkeypatch: pytest.MonkeyPatch, flags: str, machine: str, exact: bool
) -> None:
    monkeypatch.setattr(registry, "_cpu_flags", lambda: set(flags.split()))
    monkeypatch.setattr(registry.platform, "machine", lambda: machine)
    assert multiplies_bytes.__wrapped__() is exact


class Signs(torch.nn.Module):
    """Have a layer in the middle whose weight and input are as large as eight bits can say, everywhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(256, 256, bias=False) for _ in range(3))
        for layer in self.layers:
            layer.weight.data = layer.weight.data.sign() * 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, middle, last = self.layers
        made: torch.Tensor = last(torch.tanh(middle(torch.tanh(1e3 * first(x)))))
        return made


def signs(folder: Path, backend: str) -> tuple[Path, np.ndarray]:
    """Build `Signs` for 8 bits, and give what it makes of the noise of seed 0 as well."""
    if backend == "ov":
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'diffc[openvino]'")
    model = Signs().requires_grad_(False)
    program = capture(lambda: model(torch.randn(1, 1, 4, 256)), {"model": model})
    x = torch.randn(1, 1, 4, 256, generator=torch.Generator("cpu").manual_seed(0))
    wanted: np.ndarray = model(x).movedim(1, -1).numpy()  # as pictures are given
    return write_bundle([program], folder / "x.diffc", f"{backend}-w8a8"), wanted


def drawn(bundle: Path) -> np.ndarray:
    return np.asarray(load(bundle)(seed=0, output="np"))


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("backend", ["ort", "ov"])
def test_sums_of_large_products_of_bytes_are_not_cut_off(
    monkeypatch: pytest.MonkeyPatch, backend: str, bits: int, tmp_path: Path
) -> None:
    if bits == 8:
        monkeypatch.setitem(OF_TARGETS, f"{backend}-w8a8", RECIPES["w8a8"])
    bundle, wanted = signs(tmp_path, backend)
    manifest = open_bundle(bundle).manifest
    (graph,) = (name for name in manifest.graphs if manifest.component(name))
    assert manifest.has_reduced_range(graph) is (bits == 7)
    assert sqnr(drawn(bundle), wanted) > LARGE_BYTES_SQNR


@pytest.mark.parametrize("backend", ["ort", "ov"])
def test_without_vnni_bytes_are_multiplied_where_the_manifest_says_that_they_fit(
    monkeypatch: pytest.MonkeyPatch, backend: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry, "multiplies_bytes", lambda: False)
    bundle, wanted = signs(tmp_path, backend)
    in_bytes = drawn(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for graph in manifest["graphs"].values():
        del graph["reduced_range"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    in_float = drawn(bundle)
    assert not np.array_equal(in_bytes, in_float), "sums of floats are rounded"
    assert min(sqnr(in_bytes, wanted), sqnr(in_float, wanted)) > LARGE_BYTES_SQNR


def test_each_target_has_its_engine() -> None:
    targets = {"ort-fp16": "ort", "onnx-fp32": "onnx", "ov-bf16": "ov", "trt-w4a8@sm86,sm89": "trt"}
    assert {target: check_engine(target) for target in targets} == targets


def test_the_reason_of_an_error_is_the_line_that_says_something() -> None:
    lines = "Exception from src/core.cpp:84:\nCheck 'false' failed at x.cpp:47:\nLoading input model\nno such file\n\n"
    assert reason(RuntimeError(lines)) == "no such file"
    assert reason(RuntimeError("[ONNXRuntimeError] : 1 : FAIL\nmore")) == "[ONNXRuntimeError] : 1 : FAIL"
    assert reason(ValueError()) == "ValueError"
