"""List the files that an ONNX graph reads, and its outputs, without the onnx package.

ONNX keeps big tensors in other files, by a path in the graph (``TensorProto.external_data``). ONNX Runtime 1.23 follows
that path anywhere on the machine, 1.31 does not. So a bundle's graphs are searched before a session sees them.

Specification: the wire format of protocol buffers, https://protobuf.dev/programming-guides/encoding, and onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffc.runtime.errors import BundleError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
DEPTH = 100
GRAPH, OUTPUT, NAME = 7, 12, 1  # of a model, of a graph, of an output
OPSETS, DOMAIN, VERSION = 8, 1, 2  # of a model, of an opset
NODE, INITIALIZER, INPUT, OPERATOR, TYPE, TENSOR_NAME = 1, 5, 1, 4, 2, 8  # of a graph, of a node, of a tensor
FLOAT8 = (17, 18, 19, 20)
"""The types of 8-bit floats, as tensors number them."""

# Message -> number of a field that holds messages -> their kind. Everything that can hold a tensor is here.
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_files(model: bytes) -> set[str]:
    """Collect the locations of all external tensors of a serialized ONNX model.

    Raises `BundleError` where the bytes are no protocol buffer.
    """
    return set(_external(memoryview(model), "model", 0, b"location"))


def external_bytes(model: bytes) -> int:
    """Add up the lengths of all external tensors of a serialized ONNX model. Raises `BundleError`."""
    return sum(int(length) for length in _external(memoryview(model), "model", 0, b"length") if length.isdecimal())


def output_names(model: bytes) -> list[str]:
    """Return the names of the outputs of a serialized ONNX model. Raises `BundleError` as `external_files` does."""
    graphs = [content for number, content in _fields(memoryview(model)) if number == GRAPH]
    outputs = [content for graph in graphs for number, content in _fields(graph) if number == OUTPUT]
    return [
        bytes(name).decode("utf-8", "replace") for out in outputs for number, name in _fields(out) if number == NAME
    ]


def opset(model: bytes) -> int:
    """Return the version of ONNX's own operators that a serialized model is of. Raises `BundleError`."""
    opsets = [dict(_every(content)) for number, content in _fields(memoryview(model)) if number == OPSETS]
    versions = [entry.get(VERSION, 0) for entry in opsets if bytes(entry.get(DOMAIN, b"")) in (b"", b"ai.onnx")]
    return max((version for version in versions if isinstance(version, int)), default=0)


def quantizes_to_floats(model: bytes) -> bool:
    """Return whether an activation of a serialized ONNX model is quantized to 8-bit floats.

    Raises `BundleError` as `external_files` does.
    """
    if b"QuantizeLinear" not in model:
        return False
    types, zeros = dict[bytes, int](), set[bytes]()
    for graph in (content for number, content in _fields(memoryview(model)) if number == GRAPH):
        for number, content in _fields(graph):
            if number == INITIALIZER:
                tensor = dict(_every(content))
                types[bytes(tensor.get(TENSOR_NAME, b""))] = int(tensor.get(TYPE, 0))
            if number == NODE:
                fields = [(field, bytes(name)) for field, name in _fields(content)]
                inputs = [name for field, name in fields if field == INPUT]
                if (OPERATOR, b"QuantizeLinear") in fields:
                    zeros |= set(inputs[2:])
    return any(types.get(zero) in FLOAT8 for zero in zeros)


def _external(message: memoryview, kind: str, depth: int, key: bytes) -> Iterator[str]:
    """Yield the values of a key of all external tensors."""
    if depth > DEPTH:
        raise BundleError("an ONNX graph is nested too deep", fix="build the bundle again")
    if kind == "entry":
        entry = {number: bytes(content) for number, content in _fields(message)}
        if entry.get(1) == key:
            yield entry.get(2, b"").decode("utf-8", "replace")
        return
    for number, content in _fields(message):
        if number in FIELDS[kind]:
            yield from _external(content, FIELDS[kind][number], depth + 1, key)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    return ((number, content) for number, content in _every(message) if isinstance(content, memoryview))


def _every(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield the number of each field, and its bytes or its integer; fixed numbers are left out."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire, content = tag & 7, memoryview(b"")
        if wire == VARINT:
            integer, at = _varint(message, at)
            yield tag >> 3, integer
        elif wire in (FIXED64, FIXED32):
            at += 8 if wire == FIXED64 else 4
        elif wire == BYTES:
            size, start = _varint(message, at)
            at = start + size
            content = message[start:at]
        else:
            raise _broken()
        if at > len(message) or tag >= 2**32:
            raise _broken()
        if wire == BYTES:
            yield tag >> 3, content


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise _broken()


def _broken() -> BundleError:
    return BundleError("an ONNX graph is damaged", fix="build the bundle again")
