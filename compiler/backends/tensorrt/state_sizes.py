"""Write the sizes that reshapes leave open into the graph.

Before:
    k[2, 64, 5, 32] = Reshape(x[2, 64, 160], [2, -1, 5, 32])

After:
    k[2, 64, 5, 32] = Reshape(x[2, 64, 160], [2, 64, 5, 32])

One file may serve graphs of several batches (`diffc.compiler.backends.tensorrt.merge_shapes`). Its batch is open, and
TensorRT does not solve for a size beside it: it then refuses attention whose keys and values differ in the known
parts of their shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir


def state_sizes(graph: onnx_ir.Graph) -> None:
    """Replace -1 in the sizes of each reshape by the size, where the shape of the result is known."""
    for node in graph:
        sizes = node.inputs[1] if node.op_type == "Reshape" else None
        shape = node.outputs[0].shape
        if sizes is None or sizes.const_value is None or shape is None or not shape.is_static():
            continue
        if -1 in sizes.const_value.numpy():
            node.replace_input_with(1, sizes_constant(graph, tuple(shape.numpy())))


def sizes_constant(graph: onnx_ir.Graph, sizes: tuple[int, ...]) -> onnx_ir.Value:
    """Return the initializer that holds a list of sizes, which all readers of the same list share."""
    name = f"sizes_{'_'.join(map(str, sizes))}"
    if name not in graph.initializers:
        tensor: Any = onnx_ir.tensor(np.array(sizes, np.int64), name=name)
        type_ = onnx_ir.TensorType(tensor.dtype)
        graph.register_initializer(onnx_ir.Value(name=name, shape=tensor.shape, type=type_, const_value=tensor))
    return graph.initializers[name]
