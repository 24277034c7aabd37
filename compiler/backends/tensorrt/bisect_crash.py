"""Find the node of an ONNX graph at which a builder crashes, by building ever fewer nodes.

A crash leaves no message that names a node. The nodes of a graph lie in an order in which each reads only outputs
of earlier ones, so its first n nodes are a graph too; the n at which building begins to fail is found by halving.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]


def first_failing_node(path: Path, fails: Callable[[Path], bool]) -> str:
    """Name the first operator, and its output, with which the graph fails to build; empty where no part fails.

    ``fails`` is called with files that are written beside the graph, whose weights they share.
    """
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    except (onnx.shape_inference.InferenceError, EncodeError):
        return ""
    works, broken = 0, len(model.graph.node)
    trial = path.with_name(f"{path.stem}.trial.onnx")
    try:
        while works + 1 < broken:
            middle = (works + broken) // 2
            trial.write_bytes(first_nodes(model, middle).SerializeToString())
            works, broken = (works, middle) if fails(trial) else (middle, broken)
        if broken == len(model.graph.node):
            trial.write_bytes(first_nodes(model, broken).SerializeToString())
            if not fails(trial):
                return ""
    finally:
        trial.unlink(missing_ok=True)
    node = model.graph.node[broken - 1]
    return f"{node.op_type} {node.output[0]}"


def first_nodes(model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """Build a model of the first nodes; its outputs are the values that the other nodes read, and the graph's own."""
    graph, nodes = model.graph, model.graph.node[:count]
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    read = {name for node in nodes for name in node.input}
    read_later = {name for node in graph.node[count:] for name in node.input} | {value.name for value in graph.output}
    outputs = [name for node in nodes for name in node.output if name in read_later and name in known]
    part = onnx.GraphProto(name=graph.name)
    part.node.extend(nodes)
    part.input.extend(value for value in graph.input if value.name in read)
    part.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    part.output.extend(known[name] for name in outputs)
    return onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=part)
