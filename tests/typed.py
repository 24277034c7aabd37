"""Say of which types the values of an ONNX graph are, and that no operator is given two kinds of float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from onnx import TensorProto

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)

BOOLEAN = ("And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor")

INDICES = ("ArgMax", "ArgMin", "NonZero", "Shape", "Size")


def types_of(file: Path) -> dict[str, int]:
    """Give the type of each value, from those of inputs and initializers on."""
    graph = onnx.load(file, load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        given = [types[name] for name in node.input[: 1 if node.op_type == "Resize" else None] if name]
        floats = {type_ for type_ in given if type_ in FLOATS}
        assert len(floats) <= 1, f"{node.op_type} {node.name} is given {floats}"
        types |= dict.fromkeys(node.output, _made(node, given))
    for value in graph.output:
        assert types[value.name] == value.type.tensor_type.elem_type
    return types


def _made(node: onnx.NodeProto, given: list[int]) -> int:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Cast":
        return attributes["to"].i
    if node.op_type in ("Constant", "ConstantOfShape"):
        return attributes["value"].t.data_type if "value" in attributes else TensorProto.INT64
    if node.op_type == "QuantizeLinear":
        return given[2]
    if node.op_type in BOOLEAN:
        return TensorProto.BOOL
    if node.op_type in INDICES:
        return TensorProto.INT64
    return given[1] if node.op_type in ("DequantizeLinear", "Where") else given[0]


def computed(file: Path) -> Counter[tuple[str, str]]:
    """Count the operators by the type of float that they give, or are given first, and their kind."""
    types = types_of(file)
    nodes = onnx.load(file, load_external_data=False).graph.node
    found = Counter[tuple[str, str]]()
    for node in nodes:
        met = [types[name] for name in (*node.output, *node.input[:1]) if name and types[name] in FLOATS]
        if met:
            found[TensorProto.DataType.Name(met[0]), node.op_type] += 1
    return found
