"""Name the axes whose sizes the request decides, and write what depends on them into the graph.

The exporter names them by symbols of its own; engines and people read those of the program: ``L0``, ``2*L0 + 1``.
"""

from __future__ import annotations

import onnx_ir

from diffc.compiler.ir.program import Graph, Size


def name_axes(model: onnx_ir.Model, graph: Graph) -> None:
    """Name the open axes of a model's inputs and outputs as the ports of its graph do."""
    pairs = [(graph.inputs, model.graph.inputs), (graph.outputs, model.graph.outputs)]
    for port, value in (pair for ports, values in pairs for pair in zip(ports, values, strict=True)):
        if port.type.lengths:
            value.shape = onnx_ir.Shape([str(size) if isinstance(size, Size) else size for size in port.type.shape])


def repeated_mask(mask: onnx_ir.Value, queries: onnx_ir.Value, stem: str) -> list[onnx_ir.Node]:
    """Return nodes that repeat a mask of one row for each query, whose number is known only as the graph runs."""
    count = onnx_ir.node("Shape", [queries], attributes={"start": -2, "end": -1})
    one = onnx_ir.node("Constant", [], attributes={"value_ints": [1]})
    sizes = onnx_ir.node("Concat", [count.outputs[0], one.outputs[0]], attributes={"axis": 0})
    expanded = onnx_ir.node("Expand", [mask, sizes.outputs[0]])
    nodes = [count, one, sizes, expanded]
    for node in nodes:
        node.outputs[0].name = f"{stem}_{node.op_type.lower()}"
    expanded.outputs[0].type = mask.type
    return nodes
