"""Lay products of four-bit weights out as TensorRT's builder requires them.

Before:
    y[..., n] = MatMul(x8[..., k], Transpose(DequantizeLinear(quantized[n, k], scales[n, k / group], axis=1)))

After:
    y[..., n] = Reshape(MatMul(x8[:, k], DequantizeLinear(quantized[k, n], scales[k / group, n], axis=0)))

where x8 is quantized after it was reshaped to a matrix.

TensorRT for RTX 1.7 builds no engine of the former where x8 is quantized: it requires a weight whose first axis is
summed over, and a product of two matrices, for which it does not repeat the weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir

from diffc.compiler.backends.onnx.packing import packed
from diffc.compiler.backends.onnx.state_sizes import sizes_constant

GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
"""The attributes of a Gemm that ONNX has by default."""

FOUR_BITS = (onnx_ir.DataType.INT4, onnx_ir.DataType.FLOAT4E2M1)


def lay_out(graph: onnx_ir.Graph) -> None:
    """Rewrite each product of a quantized activation with four-bit weights in groups."""
    for product in [node for node in graph if node.op_type in ("MatMul", "Gemm")]:
        weight = _weight(product)
        if weight and _maker(product, 0, "DequantizeLinear") and _is_in_groups(weight):
            _rewrite(graph, product, weight)
    for node in reversed(list(graph)):
        if node.op_type in ("Transpose", "QuantizeLinear", "DequantizeLinear") and not _is_read(node):
            graph.remove(node, safe=True)


def _weight(product: onnx_ir.Node) -> onnx_ir.Node | None:
    """Return the producer of a product's weight; a Gemm, which multiplies matrices only, transposes it itself."""
    if product.op_type == "Gemm":
        says = GEMM | {name: attribute.value for name, attribute in product.attributes.items()}
        is_linear = says == GEMM | {"transB": 1} and len(product.inputs) == 2
        return _maker(product, 1, "DequantizeLinear") if is_linear else None
    transpose = _maker(product, 1, "Transpose")
    return transpose and _maker(transpose, 0, "DequantizeLinear")


def _maker(node: onnx_ir.Node, at: int, kind: str) -> onnx_ir.Node | None:
    """Return the producer of an input if it is of a kind."""
    value = node.inputs[at]
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == kind else None


def _is_in_groups(weight: onnx_ir.Node) -> bool:
    quantized = weight.inputs[0]
    if quantized is None or quantized.const_value is None or "block_size" not in weight.attributes:
        return False
    return quantized.const_value.dtype in FOUR_BITS and weight.attributes["axis"].as_int() == 1


def _is_read(node: onnx_ir.Node) -> bool:
    return bool(node.outputs[0].uses()) or node.outputs[0].is_graph_output()


def _rewrite(graph: onnx_ir.Graph, product: onnx_ir.Node, weight: onnx_ir.Node) -> None:
    activation, result = product.inputs[0], product.outputs[0]
    assert activation is not None and activation.shape is not None and result.shape is not None
    dtype, name, shape = result.dtype, result.name, result.shape.numpy()
    columns = activation.shape.numpy()[-1]
    group = weight.attributes["block_size"].as_int()
    laid = onnx_ir.node(
        "DequantizeLinear",
        [_transposed(graph, weight.inputs[0]), _scales(graph, product, weight.inputs[1])],
        attributes={"axis": 0, "block_size": group},
    )
    sizes = sizes_constant(graph, (math.prod(shape[:-1]), columns))
    matrix = onnx_ir.node("MatMul", [_flat(graph, product, activation, sizes), laid.outputs[0]])
    reshape = onnx_ir.node("Reshape", [matrix.outputs[0], sizes_constant(graph, shape)])
    for part, node in {"laid": laid, "matrix": matrix, "whole": reshape}.items():
        node.outputs[0].name = f"{name}_{part}"
    reshaped = reshape.outputs[0]
    reshaped.shape, reshaped.type = result.shape, onnx_ir.TensorType(dtype) if dtype is not None else None
    graph.insert_before(product, [laid, matrix, reshape])
    if result.is_graph_output():
        result.name, reshaped.name = f"{name}_replaced", name
    result.replace_all_uses_with(reshaped, replace_graph_outputs=True)
    graph.remove(product, safe=True)


def _flat(graph: onnx_ir.Graph, product: onnx_ir.Node, activation: Any, sizes: onnx_ir.Value) -> onnx_ir.Value:
    """Quantize an activation as a matrix; ONNX Runtime refuses to reshape a quantized tensor."""
    dequantize = activation.producer()
    quantize = dequantize.inputs[0].producer()
    chain = [quantize, dequantize] if quantize is not None and quantize.op_type == "QuantizeLinear" else []
    value = _insert(graph, product, "Reshape", chain[0].inputs[0] if chain else activation, sizes)
    for node in chain:
        value = _insert(graph, product, node.op_type, value, *node.inputs[1:], attributes=node.attributes)
    return value


def _insert(
    graph: onnx_ir.Graph, product: onnx_ir.Node, kind: str, *inputs: Any, attributes: Mapping[str, Any] | None = None
) -> onnx_ir.Value:
    node = onnx_ir.node(kind, list(inputs), attributes=attributes)
    node.outputs[0].name = f"{product.outputs[0].name}_{kind.lower()}"
    graph.insert_before(product, node)
    return node.outputs[0]


def _scales(graph: onnx_ir.Graph, product: onnx_ir.Node, scales: Any) -> onnx_ir.Value:
    """Transpose scales, which may be quantized values with a scale of their own."""
    producer = scales.producer()
    if producer is None:
        return _transposed(graph, scales)
    quantized = _transposed(graph, producer.inputs[0])
    node = onnx_ir.node(producer.op_type, [quantized, *producer.inputs[1:]], attributes=producer.attributes)
    node.outputs[0].name = f"{product.outputs[0].name}_scales"
    graph.insert_before(product, node)
    return node.outputs[0]


def _transposed(graph: onnx_ir.Graph, value: Any) -> onnx_ir.Value:
    """Return a constant matrix transposed, one for all its readers."""
    name, tensor = f"{value.name}_transposed", value.const_value
    if name not in graph.initializers:
        array = np.ascontiguousarray(np.asarray(tensor.numpy()).T)
        transposed: Any = onnx_ir.Tensor(array, tensor.dtype, name=name)
        if tensor.dtype in FOUR_BITS:
            transposed = onnx_ir.PackedTensor(
                packed(array.view(np.uint8)), tensor.dtype, shape=transposed.shape, name=name
            )
        graph.register_initializer(_initializer(transposed))
    return graph.initializers[name]


def _initializer(tensor: Any) -> onnx_ir.Value:
    type_ = onnx_ir.TensorType(tensor.dtype)
    return onnx_ir.Value(name=tensor.name, shape=tensor.shape, type=type_, const_value=tensor)
