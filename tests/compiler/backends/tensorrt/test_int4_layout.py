"""Products of four-bit weights are laid out anew, and compute the same in ONNX's reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest
from onnx import TensorProto, helper

from diffc.compiler.backends.onnx.packing import packed
from diffc.compiler.backends.tensorrt.int4_layout import lay_out
from tests.quantized_graphs import Array, close, evaluated, operators
from tests.tolerances import LEGALIZED

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 3, 64)).astype(np.float32)
QUANTIZE = "x8 = QuantizeLinear (x, step, zero) q = DequantizeLinear (x8, step, zero)"
DEQUANTIZE = "w = DequantizeLinear <axis = 1, block_size = 32> (codes, {})"
MATMUL = "t = Transpose <perm = [1, 0]> (w) y = MatMul ({}, t)"
GEMM = "y = Gemm <transB = 1> ({}, w)"
SCALES = "s = DequantizeLinear (scale8, outer)"


def model_of(body: str, rows: str = "2, 3", codes: int = TensorProto.INT4) -> onnx.ModelProto:
    """Return a graph whose weight [8, 64] has four-bit values in groups of 32."""
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
        g (float[{rows}, 64] x) => (float[{rows}, 8] y)
        <float step = {{0.05}}, int8 zero = {{0}}, float outer = {{0.01}}, float[{rows}, 64] q,
         float[{rows}, 8] a, float[{rows}, 8] b> {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    values = RANDOM.integers(0, 16, (8, 64)).astype(np.uint8)
    data = packed(values) if codes != TensorProto.INT8 else values
    scales = RANDOM.uniform(0.5, 2, (8, 2)).astype(np.float32)
    eighths = RANDOM.uniform(50, 200, (8, 2)).astype(ml_dtypes.float8_e4m3fn)
    model.graph.initializer.extend(
        [
            helper.make_tensor("codes", codes, [8, 64], data.tobytes(), raw=True),
            onnx.numpy_helper.from_array(scales, "scale"),
            helper.make_tensor("scale8", TensorProto.FLOAT8E4M3FN, [8, 2], eighths.tobytes(), raw=True),
        ]
    )
    return model


def laid_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """Lay the products of a graph out."""
    copy = onnx_ir.from_proto(model)
    lay_out(copy.graph)
    proto: onnx.ModelProto = onnx_ir.to_proto(copy)
    return proto


def axes(model: onnx.ModelProto) -> set[int]:
    """Return the axes along which weights have groups."""
    nodes = [n for n in model.graph.node if any(a.name == "block_size" for a in n.attribute)]
    return {attribute.i for node in nodes for attribute in node.attribute if attribute.name == "axis"}


def body(product: str, scales: str = "scale") -> str:
    return " ".join([QUANTIZE, *([SCALES] if scales == "s" else []), DEQUANTIZE.format(scales), product.format("q")])


@pytest.mark.parametrize("codes", [TensorProto.INT4, TensorProto.FLOAT4E2M1])
@pytest.mark.parametrize("scales", ["scale", "s"])
@pytest.mark.parametrize(("product", "rows"), [(MATMUL, "2, 3"), (MATMUL, "6"), (GEMM, "6")])
def test_a_product_sums_over_the_first_axis_of_its_weight(product: str, rows: str, scales: str, codes: int) -> None:
    before = model_of(body(product, scales), rows, codes)
    after = laid_out(before)
    onnx.checker.check_model(after, full_check=True)
    x: Array = X.reshape([*map(int, rows.split(",")), 64])
    close(evaluated(after, x), evaluated(before, x), LEGALIZED)
    assert axes(after) == {0} and "Transpose" not in operators(after) and "Gemm" not in operators(after)
    quantizes = {n.input[0] for n in after.graph.node if n.op_type == "QuantizeLinear"}
    assert quantizes == {n.output[0] for n in after.graph.node if n.op_type == "Reshape" and "x" in n.input}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (f"{DEQUANTIZE.format('scale')} {MATMUL.format('x')}", {}),  # a float activation
        (body(MATMUL), {"codes": TensorProto.INT8}),
        (body("t = Transpose <perm = [1, 0]> (w) b = MatMul (q, t) y = Relu (b)").replace(", block_size = 32", ""), {}),
        (body("y = Gemm <transB = 1, alpha = 2.0> ({}, w)"), {"rows": "6"}),
    ],
    ids=["float", "bytes", "rows", "scaled"],
)
def test_other_products_stay(text: str, options: dict[str, Any]) -> None:
    if "block_size" not in text:
        text = text.replace("(codes, scale)", "(codes, step)").replace("axis = 1", "axis = 0")
    before = model_of(text, **options)
    assert operators(laid_out(before)) == operators(before)
    assert axes(laid_out(before)) == axes(before)


def test_products_of_one_weight_share_it() -> None:
    text = body("t = Transpose <perm = [1, 0]> (w) a = MatMul ({}, t) n = Neg (q) b = MatMul (q, t) y = Add (a, b)")
    before = model_of(text)
    after = laid_out(before)
    close(evaluated(after, X), evaluated(before, X), LEGALIZED)
    weights = [tensor.name for tensor in after.graph.initializer if tensor.dims[:] == [64, 8]]
    assert weights == ["codes_transposed"] and operators(after)["MatMul"] == 2
