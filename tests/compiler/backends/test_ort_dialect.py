"""ONNX Runtime computes of blocks of low-bit values what NumPy computes of the same quantized values."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from diffc.compiler.backends.ort_dialect import OrtDialect
from tests.quantized_graphs import as_floats, close, legalized, operators, spread, stored_types
from tests.tolerances import BLOCKS_IN_BYTES, LEGALIZED, NORMALIZED

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 64)).astype(np.float32)
SCALE = RANDOM.uniform(0.5, 2, (8, 2)).astype(np.float32)
SHAPES = {"x": "float[4, 64]", "y": "float[4, 8]", "w": "float[8, 64]", "t": "float[64, 8]"}
PRODUCT = "t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)"
WEIGHT = 'w = diffc.Dequantize <group = 32, form = "{}"> (codes, scale)'

Array = NDArray[Any]


def run(model: onnx.ModelProto, x: Array = X) -> Array:
    """Run a graph in ONNX Runtime, which folds constants: kernels for blocks read constant scales."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def codes(form: str) -> Array:
    """Return quantized values [8, 64]."""
    half = 2 ** (int(form[3:]) - 1)
    return RANDOM.integers(-half, half, (8, 64)).astype(np.int8)


def attributes(model: onnx.ModelProto, kind: str) -> dict[str, int]:
    """Return the integer attributes of the only operator of a kind."""
    (node,) = (node for node in model.graph.node if node.op_type == kind)
    return {attribute.name: attribute.i for attribute in node.attribute}


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_a_product_of_groups_is_one_operator_of_blocks(form: str) -> None:
    values = codes(form)
    model = legalized(f"{WEIGHT.format(form)} {PRODUCT}", OrtDialect, SHAPES, codes=values, scale=SCALE)
    close(run(model), X @ (values * spread(SCALE, 32)).T, LEGALIZED)
    assert operators(model) == {"Reshape": 1, "MatMulNBits": 1} and stored_types(model) >= {"UINT8"}
    assert attributes(model, "MatMulNBits")["accuracy_level"] == 0, "computed in float"


def test_rows_that_are_no_multiple_of_a_block_are_filled_with_zeros() -> None:
    values, x = codes("int4")[:, :40], X[:, :40]
    shapes = {"x": "float[4, 40]", "y": "float[4, 8]", "w": "float[8, 40]", "t": "float[40, 8]"}
    model = legalized(f"{WEIGHT.format('int4')} {PRODUCT}", OrtDialect, shapes, codes=values, scale=SCALE)
    expected = x @ (values * spread(SCALE, 32)[:, :40]).T
    close(run(model, x), expected, LEGALIZED)


def test_activations_in_the_same_groups_are_quantized_by_the_operator() -> None:
    values = codes("int8")
    body = 'q = diffc.FakeQuantizeGroups <spec = "int8:group=32:dynamic"> (x) ' + WEIGHT.format("int8")
    body += PRODUCT.replace("(x, t)", "(q, t)")
    model = legalized(body, OrtDialect, SHAPES | {"q": SHAPES["x"]}, codes=values, scale=SCALE)
    assert operators(model) == {"Reshape": 1, "MatMulNBits": 1}
    assert attributes(model, "MatMulNBits")["accuracy_level"] == 4, "computed in 8 bits"
    scale = np.abs(X.reshape(4, 2, 32)).max(-1, keepdims=True) / 127
    rounded = (np.round(X.reshape(4, 2, 32) / scale) * scale).reshape(4, 64)
    expected = rounded @ (values * spread(SCALE, 32)).T
    close(run(model), expected, BLOCKS_IN_BYTES)


def test_a_weight_that_is_read_elsewhere_too_is_dequantized() -> None:
    values = codes("int4")
    body = (
        f"{WEIGHT.format('int4')} t = Transpose <perm = [1, 0]> (w) p = MatMul (x, t) s = ReduceSum (w) y = Add (p, s)"
    )
    model = legalized(body, OrtDialect, SHAPES | {"p": SHAPES["y"]}, codes=values, scale=SCALE)
    weight = values * spread(SCALE, 32)
    close(run(model), X @ weight.T + weight.sum(), LEGALIZED)
    assert "MatMulNBits" not in operators(model) and operators(model)["DequantizeLinear"] == 1


def test_floats_of_eight_bits_are_rounded_by_casts() -> None:
    body, step = 'y = diffc.FakeQuantize <form = "e4m3"> (x, step)', np.array([0.02], np.float32)
    model = legalized(body, OrtDialect, {"x": SHAPES["x"], "y": SHAPES["x"]}, step=step)
    np.testing.assert_array_equal(run(model), as_floats(X / step, ml_dtypes.float8_e4m3fn) * step)
    assert operators(model) == {"Div": 1, "Cast": 2, "Mul": 1}


def test_signed_integers_are_stored_without_a_sign_and_the_same_values() -> None:
    body, step = 'y = diffc.FakeQuantize <form = "int8"> (x, step)', np.array([0.02], np.float32)
    model = legalized(body, OrtDialect, {"x": SHAPES["x"], "y": SHAPES["x"]}, step=step)
    np.testing.assert_array_equal(run(model), np.clip(np.round(X / step), -128, 127) * step)
    zeros = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8]
    assert [onnx.numpy_helper.to_array(zero).item() for zero in zeros] == [128]


@pytest.mark.parametrize("kind", ["GroupNormalization <epsilon = 1e-6, num_groups = 4>", "InstanceNormalization"])
@pytest.mark.parametrize("deviation", [0.0, 1e-3, 1.0])
def test_a_group_whose_values_are_almost_the_same_is_normalized(kind: str, deviation: float) -> None:
    x = (RANDOM.standard_normal((2, 16, 8, 8)) * deviation + 127.3).astype(np.float32)
    weight, bias = RANDOM.standard_normal((2, 16)).astype(np.float32)
    shapes = {"x": "float[2, 16, 8, 8]", "y": "float[2, 16, 8, 8]"}
    model = legalized(f"y = {kind} (x, weight, bias)", OrtDialect, shapes, weight=weight, bias=bias)
    rows = x.astype(np.float64).reshape(2, 4 if "Group" in kind else 16, -1)
    epsilon = 1e-6 if "Group" in kind else 1e-5
    normal = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + epsilon)
    close(run(model, x), normal.reshape(x.shape) * weight[:, None, None] + bias[:, None, None], NORMALIZED)


@pytest.mark.parametrize("scale", ["weight", "CastLike (weight, x)"])
def test_groups_are_normalized_where_no_shape_is_inferred(scale: str) -> None:
    x = RANDOM.standard_normal((2, 16, 8, 8)).astype(np.float32)
    weight, bias = RANDOM.standard_normal((2, 4)).astype(np.float32)
    body = "n = InstanceNormalization (r, w, bias) s = Shape (x) y = Reshape (n, s)"
    body = f"r = Reshape (x, rows) w = {scale if '(' in scale else f'Identity ({scale})'} {body}"
    shapes = {"x": "float[2, 16, 8, 8]", "y": "float[2, 16, 8, 8]"}
    model = legalized(body, OrtDialect, shapes, rows=np.array([0, 4, -1]), weight=weight, bias=bias)
    rows = x.astype(np.float64).reshape(2, 4, -1)
    normal = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-5)
    close(run(model, x), (normal * weight[:, None] + bias[:, None]).reshape(x.shape), NORMALIZED)


@pytest.mark.parametrize("type_", ["bool", "bfloat16"])
def test_values_are_selected_in_a_type_that_onnx_runtime_has(type_: str) -> None:
    kind = onnx.TensorProto.DataType.Value(type_.upper())
    body = (
        f"b = Cast <to = 9> (x) c = Not (b) a = Cast <to = {kind}> (x) d = Cast <to = {kind}> (c) e = Where (b, a, d)"
    )
    shapes = {"x": "float[4, 64]", "y": "float[4, 64]", "b": "bool[4, 64]", "c": "bool[4, 64]"}
    shapes |= dict.fromkeys("ade", f"{type_}[4, 64]")
    model = legalized(f"{body} y = Cast <to = 1> (e)", OrtDialect, shapes)
    x = RANDOM.integers(-3, 3, (4, 64)).astype(np.float32) / 2
    close(run(model, x), np.where((x == 0) | (type_ == "bool"), 1, x), LEGALIZED)
