"""Search serialized ONNX models, written by the onnx package, for external tensors, outputs and 8-bit floats."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper

from diffc.runtime import BundleError
from diffc.runtime.bundle.onnx_external_data import (
    external_bytes,
    external_files,
    opset,
    output_names,
    quantizes_to_floats,
)
from tests.mutations import EDITS, edited


def external(name: str, location: str, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[length // 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("length", str(length)), ("location", location)):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(name: str, nodes: list[onnx.NodeProto], tensors: list[TensorProto] = []) -> onnx.GraphProto:  # noqa: B006
    output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [1])
    return helper.make_graph(nodes, name, [], [output], tensors)


def model_of(*tensors: TensorProto, nodes: list[onnx.NodeProto] | None = None) -> bytes:
    return helper.make_model(graph("main", nodes or [], list(tensors))).SerializeToString()


def test_finds_tensors_wherever_onnx_allows_them() -> None:
    then = graph("then", [], [external("c", "c.bin", 12)])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=external("b", "b.bin", 8)),
        helper.make_node("If", ["condition"], ["y"], then_branch=then, else_branch=graph("else", [])),
    ]
    data = model_of(external("a", "../weights/a.bin", 4), nodes=nodes)
    assert external_files(data) == {"../weights/a.bin", "b.bin", "c.bin"}
    assert external_bytes(data) == 4 + 8 + 12
    assert output_names(data) == ["main_out"], "not those of nested graphs"


def hidden(location: str, place: str) -> bytes:
    """Hide an external tensor in a place of a model."""
    weight = external("w", location, 16)
    constant = helper.make_node("Constant", [], ["y"])
    constant.attribute.add(name="value", type=4).t.CopyFrom(weight)
    graph = helper.make_graph([], "g", [], [])
    function = helper.make_function("d", "f", [], ["y"], [constant], [helper.make_opsetid("", 20)])
    if place == "initializer":
        graph.initializer.append(weight)
    elif place == "constant":
        graph.node.append(constant)
    elif place == "branch":
        inner = helper.make_graph([constant], "inner", [], [])
        graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    elif place == "sparse":
        graph.sparse_initializer.add().values.CopyFrom(weight)
    elif place == "list":
        graph.node.append(helper.make_node("Custom", [], ["y"]))
        graph.node[0].attribute.add(name="values", type=9).tensors.append(weight)
    elif place == "sparse list":
        graph.node.append(helper.make_node("Custom", [], ["y"]))
        graph.node[0].attribute.add(name="value", type=11).sparse_tensor.indices.CopyFrom(weight)
        graph.node[0].attribute.add(name="values", type=12).sparse_tensors.add()
    made = helper.make_model(graph, functions=[function] if place == "function" else [])
    return made.SerializeToString()


@pytest.mark.parametrize("place", ["initializer", "constant", "branch", "sparse", "list", "sparse list", "function"])
@pytest.mark.parametrize("location", ["weights/unet.bin", "../../etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_finds_every_file_that_a_graph_reads(place: str, location: str) -> None:
    assert external_files(hidden(location, place)) == {location}


def test_names_the_outputs_of_a_graph_in_order(tiny: Any) -> None:
    assert [output_names(content) for content in tiny.graphs(1).values()] == [["hidden"], ["out"], ["image"]]
    nodes = [helper.make_node("Split", ["x"], ["z", "a", "m"], axis=0, num_outputs=3)]
    outputs = {name: ("float32", [1]) for name in ("z", "a", "m")}
    assert output_names(tiny.graph(nodes, {"x": ("float32", [3])}, outputs, [])) == ["z", "a", "m"]


def test_finds_nothing_in_a_graph_that_reads_nothing(tiny: Any) -> None:
    assert [external_files(content) for content in tiny.graphs(1, "w.bin").values()] == [{"w.bin"}, set(), set()]


def test_a_model_that_holds_its_tensors_needs_no_file() -> None:
    assert external_files(model_of(helper.make_tensor("a", TensorProto.FLOAT, [2], [1.0, 2.0]))) == set()


@pytest.mark.parametrize(("kind", "is_float"), [(TensorProto.FLOAT8E4M3FN, True), (TensorProto.INT8, False)])
def test_sees_activations_in_8_bit_floats(kind: int, is_float: bool) -> None:
    zero = TensorProto(name="zero", data_type=kind, dims=[1], raw_data=b"\0")
    quantize = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])
    assert quantizes_to_floats(model_of(zero, nodes=[quantize])) == is_float
    assert not quantizes_to_floats(model_of(zero)), "a weight in 8-bit floats alone quantizes nothing"


@pytest.mark.parametrize(
    "data",
    [b"\x0f", b"\x0b", b"\x3a\xff\x01", b"\x3a\x05abc", b"\x3a", b"\x3a\xff", b"\xff" * 11, b"\x09\x00", b"\x0d\0\0\0"],
    ids=["wire", "group", "cut", "short", "no size", "no end of a size", "long", "fixed64", "fixed32"],
)
def test_refuses_bytes_that_are_no_protocol_buffer(data: bytes) -> None:
    with pytest.raises(BundleError, match="an ONNX graph is damaged"):
        external_files(data)


def field(number: int, content: bytes) -> bytes:
    """Encode a field that holds bytes."""
    size = len(content)
    varint = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    return bytes([number << 3 | 2]) + varint + content


def test_refuses_graphs_that_are_nested_without_end() -> None:
    graph = b""
    for _ in range(40):
        graph = field(1, field(5, field(6, graph)))  # a node with an attribute with a graph; onnx itself refuses these
    with pytest.raises(BundleError, match="nested too deep"):
        external_files(field(7, graph))


@settings(max_examples=200, deadline=None)
@given(EDITS)
def test_mutated_graphs_are_searched_or_refused(edits: list[tuple[float, int, bytes]]) -> None:
    content = edited(hidden("weights/unet.bin", "branch"), edits)
    for search in (external_files, output_names):
        with suppress(BundleError):
            assert all(len(name) <= len(content) for name in search(content))


def test_reads_the_version_of_onnxs_own_operators() -> None:
    opsets = [helper.make_opsetid("plugin", 40), helper.make_opsetid("", 23)]
    assert opset(helper.make_model(graph("main", []), opset_imports=opsets).SerializeToString()) == 23
    assert opset(b"") == 0
