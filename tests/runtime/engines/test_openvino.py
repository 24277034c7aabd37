"""Compute in OpenVINO in the type that the target names, and recommend it where it was measured to be faster."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

from diffc.runtime import BundleError, load
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.engines import cpu, openvino
from diffc.runtime.engines.openvino import advice, openvino_core, recommended
from diffc.runtime.engines.registry import open_graph
from tests.tolerances import PICTURE_OF_NUMPY

PLACE = "{}.onnx"


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process find no OpenVINO."""
    openvino_core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    yield
    openvino_core.cache_clear()


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


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize(("heads", "tokens"), [(8, 8), (8, 5), (1, 1)])
def test_attention_with_as_many_heads_as_tokens(
    tiny: Any, tmp_path: Path, heads: int, tokens: int, is_open: bool
) -> None:
    """OpenVINO's fused attention would write over the queries."""
    size = [1, heads, tokens, 16]
    declared = [1, heads, "L0", 16] if is_open else size
    nodes = [helper.make_node("Relu", [name], [f"{name}_"]) for name in "qkv"]
    nodes += [
        helper.make_node("Attention", ["q_", "k_", "v_"], ["attended"]),
        helper.make_node("Transpose", ["attended"], ["out"], perm=[0, 2, 1, 3]),
    ]
    ports = {name: ("float32", declared) for name in "qkv"}, {"out": ("float32", [1, declared[2], heads, 16])}
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


def test_importing_the_engines_imports_none_and_openvino_reports_nothing(tmp_path: Path) -> None:
    code = """if True:
        import sys
        seen = []
        def watch(event, args):
            if event.startswith("socket.") and event != "socket.__new__" or event == "os.fork":
                seen.append(event)
        sys.addaudithook(watch)
        from diffc.runtime.engines.openvino import openvino_core
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


def test_openvino_reads_graphs_that_are_called_onnx(tiny: Any, tmp_path: Path) -> None:
    made = tiny.write(tmp_path / "x.diffc", place="{}.xml", target="ov-fp32")
    with pytest.raises(BundleError, match=r"text_encoder.xml is no .onnx file"):
        load(made)("red circle", seed=0)


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
    monkeypatch.setattr(openvino, "cpu_flags", lambda: set(flags.split()))
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    assert recommended() == backend
    said = advice("ort-bf16", 1 << 30)
    assert (said is not None) == (backend == "ov")
    assert said is None or said.endswith("build for ov-bf16")
    monkeypatch.setattr(openvino, "openvino_version", lambda: None)
    assert said is None or str(advice("ort-bf16", 1 << 30)).endswith(
        "build for ov-bf16 (pip install 'diffc[openvino]')"
    )
    assert advice("ov-bf16", 1 << 30) is advice("ort-bf16", 1 << 20) is None
