"""Write the sizes that reshapes leave open into the graph.

Before:
    k[2, 64, 5, 32] = Reshape(x[2, 64, 160], [2, -1, 5, 32])

After:
    k[2, 64, 5, 32] = Reshape(x[2, 64, 160], [2, 64, 5, 32])

PyTorch's views leave a size open, and a graph is exported as it was captured. Tools that infer shapes do not all solve
for it. One file may serve graphs of several batches (`diffc.compiler.backends.tensorrt.merge_shapes`): its batch is
open, TensorRT does not solve for a size beside it, and refuses attention whose keys and values differ in the known
parts of their shapes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir


def state_sizes(graph: onnx_ir.Graph) -> None:
    """Replace -1 in the sizes of each reshape by the size, where the shape of the result or of the input is known."""
    for node in graph:
        sizes = node.inputs[1] if node.op_type == "Reshape" else None
        if sizes is not None and sizes.const_value is not None and -1 in sizes.const_value.numpy():
            stated = _solved(sizes.const_value.numpy().tolist(), node.inputs[0], node.outputs[0])
            if stated is not None:
                node.replace_input_with(1, sizes_constant(graph, stated))


def _solved(sizes: list[int], value: onnx_ir.Value | None, result: onnx_ir.Value) -> tuple[int, ...] | None:
    """Return the sizes with the open one solved for; None where shapes are not known."""
    if result.shape is not None and result.shape.is_static():
        return tuple(result.shape.numpy())
    if value is None or value.shape is None or not value.shape.is_static() or 0 in sizes:
        return None
    left = math.prod(value.shape.numpy()) // -math.prod(sizes)
    return tuple(left if size == -1 else size for size in sizes)


def sizes_constant(graph: onnx_ir.Graph, sizes: tuple[int, ...]) -> onnx_ir.Value:
    """Return the initializer that holds a list of sizes, which all readers of the same list share."""
    name = f"sizes_{'_'.join(map(str, sizes))}"
    if name not in graph.initializers:
        tensor: Any = onnx_ir.tensor(np.array(sizes, np.int64), name=name)
        type_ = onnx_ir.TensorType(tensor.dtype)
        graph.register_initializer(onnx_ir.Value(name=name, shape=tensor.shape, type=type_, const_value=tensor))
    return graph.initializers[name]
