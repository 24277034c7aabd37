"""ONNX Runtime opens a bundle's graphs: with their own weights, exact on every CPU, and whatever the target's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from diffc.compiler import capture, write_bundle
from diffc.compiler.metrics import sqnr
from diffc.runtime import load
from diffc.runtime.bundle.onnx_external_data import quantizes_to_floats
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.engines.ort import OnnxRuntime
from diffc.runtime.engines.session import Session
from tests.tolerances import FLOAT_CODES_SQNR, GRAPH


def test_it_accepts_every_precision_and_names_itself(tiny: Any, tmp_path: Path) -> None:
    OnnxRuntime.check("w4a8")
    session = OnnxRuntime.open(open_bundle(tiny.write(tmp_path / "x.diffc")), "decoder", 1)
    assert session.engine == "ONNX Runtime"
    z = np.linspace(-4, 4, 48, dtype=np.float32).reshape(1, 3, 4, 4)
    np.testing.assert_allclose(session.run({"z": z})[0], 1 / (1 + np.exp(-z)), rtol=GRAPH)


def test_weights_are_read_beside_the_graph(tiny: Any, tmp_path: Path) -> None:
    bundle = tiny.write(tmp_path / "x.diffc")
    (hidden,) = OnnxRuntime.open(open_bundle(bundle), "text_encoder", 1).run({"input_ids": np.array([[7, 0] * 4])})
    stored = np.fromfile(bundle / "weights" / "hidden.bin", np.float32).reshape(8, 4)
    np.testing.assert_array_equal(hidden[0], stored[[7, 0] * 4])


def opened(tiny: Any, folder: Path, nodes: list[onnx.NodeProto], *constants: TensorProto) -> Session:
    """Open a graph of x [4, 64] -> y [4, 8]."""
    ports = {"x": ("float32", [4, 64])}, {"y": ("float32", [4, 8])}
    graph = tiny.graph(nodes, *ports, list(constants), opset=23)
    return OnnxRuntime.open(open_bundle(tiny.write(folder, graphs={"net": graph})), "net", 1)


def test_where_weights_alone_have_few_bits_it_computes_in_float(tiny: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    codes, scale = random.integers(-8, 8, (64, 8)), random.uniform(0.5, 2, (2, 8)).astype(np.float32)
    dequantize = helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], axis=0, block_size=32)
    nodes = [dequantize, helper.make_node("MatMul", ["x", "w"], ["y"])]
    stored = helper.make_tensor("codes", TensorProto.INT4, codes.shape, codes.flatten())
    session = opened(tiny, tmp_path / "x.diffc", nodes, stored, numpy_helper.from_array(scale, "scale"))
    x = random.standard_normal((4, 64)).astype(np.float32)
    expected = x @ (codes * np.repeat(scale, 32, axis=0))
    assert np.abs(session.run({"x": x})[0] - expected).max() <= GRAPH * np.abs(expected).max()


def test_activations_of_8_bit_floats_are_rounded_as_such(tiny: Any, tmp_path: Path) -> None:
    random, step = np.random.default_rng(0), np.float32(0.01)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "step", "zero"], ["q"]),
        helper.make_node("MatMul", ["q", "w"], ["y"]),
    ]
    weight = random.standard_normal((64, 8)).astype(np.float32)
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0])
    constants = [numpy_helper.from_array(array, name) for name, array in (("step", step), ("w", weight))]
    session = opened(tiny, tmp_path / "x.diffc", nodes, zero, *constants)
    x = random.standard_normal((4, 64)).astype(np.float32)
    expected = (x / step).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * step @ weight
    assert np.abs(session.run({"x": x})[0] - expected).max() <= GRAPH * np.abs(expected).max()


class FloatCodes(torch.nn.Module):
    """Have a layer whose activation is quantized to 8-bit floats."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)
        return result


@pytest.mark.parametrize(("target", "floats"), [("onnx-fp8", True), ("ort-fp8", False)])
def test_codes_of_8_bit_floats_are_a_property_of_the_graph(target: str, floats: bool, tmp_path: Path) -> None:
    model = FloatCodes().requires_grad_(False)
    program = capture(lambda: model(torch.randn(1, 1, 4, 64)), {"model": model})
    bundle = write_bundle([program], tmp_path / "x.diffc", target)
    (graph,) = (name for name, entry in open_bundle(bundle).manifest.graphs.items())
    assert quantizes_to_floats(open_bundle(bundle).graph(graph)) is floats
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"target": "ort-fp32"}))
    wanted = model(torch.randn(1, 1, 4, 64, generator=torch.Generator("cpu").manual_seed(0))).movedim(1, -1).numpy()
    assert sqnr(np.asarray(load(bundle)(seed=0, output="np")), wanted) > FLOAT_CODES_SQNR, "under any target's name"
