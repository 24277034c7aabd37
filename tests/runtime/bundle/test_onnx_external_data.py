"""Search serialized ONNX models, written by the onnx package, for external tensors, outputs and 8-bit floats."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from diffc.runtime import BundleError
from diffc.runtime.bundle.onnx_external_data import external_bytes, external_files, output_names, quantizes_to_floats


def external(name: str, location: str, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[length // 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("length", str(length)), ("location", location)):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(name: str, nodes: list[onnx.NodeProto], tensors: list[TensorProto] = []) -> onnx.GraphProto:  # noqa: B006
    output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [1])
    return helper.make_graph(nodes, name, [], [output], tensors)


def model(*tensors: TensorProto, nodes: list[onnx.NodeProto] | None = None) -> bytes:
    return helper.make_model(graph("main", nodes or [], list(tensors))).SerializeToString()


def test_finds_tensors_wherever_onnx_allows_them() -> None:
    then = graph("then", [], [external("c", "c.bin", 12)])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=external("b", "b.bin", 8)),
        helper.make_node("If", ["condition"], ["y"], then_branch=then, else_branch=graph("else", [])),
    ]
    data = model(external("a", "../weights/a.bin", 4), nodes=nodes)
    assert external_files(data) == {"../weights/a.bin", "b.bin", "c.bin"}
    assert external_bytes(data) == 4 + 8 + 12
    assert output_names(data) == ["main_out"], "not those of nested graphs"


def test_a_model_that_holds_its_tensors_needs_no_file() -> None:
    assert external_files(model(helper.make_tensor("a", TensorProto.FLOAT, [2], [1.0, 2.0]))) == set()


@pytest.mark.parametrize(("kind", "is_float"), [(TensorProto.FLOAT8E4M3FN, True), (TensorProto.INT8, False)])
def test_sees_activations_in_8_bit_floats(kind: int, is_float: bool) -> None:
    zero = TensorProto(name="zero", data_type=kind, dims=[1], raw_data=b"\0")
    quantize = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])
    assert quantizes_to_floats(model(zero, nodes=[quantize])) == is_float
    assert not quantizes_to_floats(model(zero)), "a weight in 8-bit floats alone quantizes nothing"


@pytest.mark.parametrize(
    "data", [b"\x0f", b"\x3a\xff\x01", b"\xff" * 11, b"\x09\x00"], ids=["wire", "cut", "long", "fixed"]
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
