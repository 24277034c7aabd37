"""What TensorRT's parser is given computes what NumPy computes of the same quantized values."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from diffc.compiler.backends.tensorrt.dialect import TensorRTDialect
from tests.quantized_graphs import as_floats, close, evaluated, legalized, operators, spread
from tests.tolerances import LEGALIZED

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 64)).astype(np.float32)
SAME = {"x": "float[4, 64]", "y": "float[4, 64]"}


def test_blocks_of_four_bit_floats_are_the_operator_of_tensorrt() -> None:
    model = legalized('y = diffc.FakeQuantizeGroups <spec = "nvfp4:dynamic"> (x)', TensorRTDialect, SAME)
    scale = as_floats(np.abs(X.reshape(4, 4, 16)).max(-1, keepdims=True) / 6, ml_dtypes.float8_e4m3fn)
    codes = as_floats(X.reshape(4, 4, 16) / scale, ml_dtypes.float4_e2m1fn)
    close(evaluated(model, X), (codes * scale).reshape(4, 64), LEGALIZED)
    assert operators(model) == {"TRT_FP4DynamicQuantize": 1, "DequantizeLinear": 2}
    assert {opset.domain: opset.version for opset in model.opset_import}["trt"] == 1


def test_other_groups_are_rounded_in_float() -> None:
    model = legalized('y = diffc.FakeQuantizeGroups <spec = "int8:group=32:dynamic"> (x)', TensorRTDialect, SAME)
    scale = np.abs(X.reshape(4, 2, 32)).max(-1, keepdims=True) / np.float32(127)
    close(evaluated(model, X), (np.round(X.reshape(4, 2, 32) / scale) * scale).reshape(4, 64), LEGALIZED)
    assert "trt" not in {opset.domain for opset in model.opset_import}


def test_four_bit_products_are_laid_out_and_every_size_is_stated() -> None:
    codes, scale = RANDOM.integers(-8, 8, (8, 64)).astype(np.int8), RANDOM.uniform(0.5, 2, (8, 2)).astype(np.float32)
    body = """q = diffc.FakeQuantize <form = "int8"> (x, step)
        w = diffc.Dequantize <group = 32, form = "int4"> (codes, scale)
        t = Transpose <perm = [1, 0]> (w) p = MatMul (q, t) y = Reshape (p, sizes)"""
    shapes = {"x": "float[4, 64]", "y": "float[2, 2, 8]", "q": "float[4, 64]", "w": "float[8, 64]"}
    shapes |= {"t": "float[64, 8]", "p": "float[4, 8]"}
    step, sizes = np.array([0.05], np.float32), np.array([2, -1, 8])
    model = legalized(body, TensorRTDialect, shapes, codes=codes, scale=scale, step=step, sizes=sizes)
    expected = np.clip(np.round(X / step), -128, 127) * step @ (codes * spread(scale, 32)).T
    close(evaluated(model, X), expected.reshape(2, 2, 8), LEGALIZED)
    assert "Transpose" not in operators(model), "by lay_out"
    reads = {name for node in model.graph.node if node.op_type == "Reshape" for name in node.input[1:]}
    assert "sizes_2_2_8" in reads, "by state_sizes"
