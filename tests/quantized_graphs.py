"""Small quantized graphs, written by a dialect, and what their quantized values mean in NumPy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from diffc.compiler.backends.onnx.dialect import Dialect
from diffc.compiler.backends.onnx.quantized_ops import lower_quantized_ops

Array = NDArray[Any]


def legalized(body: str, dialect: type[Dialect], shapes: Mapping[str, str], **constants: Array) -> onnx.ModelProto:
    """Return the graph ``x -> y`` of some operations, as a dialect writes it.

    ``shapes`` are the types of x, y and of what is computed between them, in ONNX's textual syntax.
    """
    between = ", ".join(f"{shape} {name}" for name, shape in shapes.items() if name not in ("x", "y"))
    text = f"""<ir_version: 10, opset_import: ["" : 23, "diffc" : 1, "com.microsoft" : 1]>
        g ({shapes["x"]} x) => ({shapes["y"]} y) <{between}> {{ {body} }}"""
    parsed = onnx.parser.parse_model(text)
    parsed.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    model = onnx_ir.from_proto(parsed)
    lower_quantized_ops(model, dialect)
    proto: onnx.ModelProto = onnx_ir.to_proto(model)
    return proto


def evaluated(model: onnx.ModelProto, x: Array) -> Array:
    """Run a graph in ONNX's reference."""
    evaluator = ReferenceEvaluator(model, new_ops=[TRT_FP4DynamicQuantize])  # type: ignore[arg-type]
    with np.errstate(divide="ignore"):  # the logarithm of zero is minus infinity
        (y,) = evaluator.run(None, {"x": x})
    return np.asarray(y)


def operators(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators of a graph."""
    return Counter(node.op_type for node in model.graph.node)


def stored_types(model: onnx.ModelProto) -> set[str]:
    """Return the types of the initializers that operators read."""
    reads = {name for node in model.graph.node for name in node.input}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {onnx.TensorProto.DataType.Name(types[name]) for name in reads & types.keys()}


def spread(scales: Array, group: int) -> Array:
    """Repeat each scale for the values of its group."""
    return np.repeat(scales, group, axis=-1)


def as_floats(x: Array, dtype: Any) -> Array:
    """Round to the values of a small floating-point type, which saturates."""
    highest = float(ml_dtypes.finfo(dtype).max)
    return np.clip(x, -highest, highest).astype(dtype).astype(np.float32)


def close(computed: Array, expected: Array, tolerance: float) -> None:
    """Compare relative to the largest value."""
    assert np.abs(computed - expected).max() <= tolerance * np.abs(expected).max()


class TRT_FP4DynamicQuantize(OpRun):  # the evaluator knows it by its class
    """Quantize blocks of sixteen to four-bit floats with scales of eight bits, as TensorRT's documentation states."""

    op_domain = "trt"

    def _run(self, x: Array, scale: Array, axis: int, block_size: int, scale_type: int) -> tuple[Array, ...]:  # type: ignore[override]
        assert (axis, scale_type) == (-1, onnx.TensorProto.FLOAT8E4M3FN)
        blocks = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, block_size)
        scales = as_floats(np.abs(blocks).max(-1) / 6 / np.float32(scale), ml_dtypes.float8_e4m3fn)
        scaled = blocks / np.where(scales > 0, scales, 1)[..., None]
        codes = as_floats(scaled, ml_dtypes.float4_e2m1fn).reshape(x.shape)
        return codes.astype(ml_dtypes.float4_e2m1fn), scales.astype(ml_dtypes.float8_e4m3fn)
