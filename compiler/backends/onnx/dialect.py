"""Write the operators of quantized graphs in portable ONNX: quantized values of their own type, and Q/DQ around them.

A back end whose engine reads another form brings a subclass of `Dialect` of its own.

Specification: ONNX operators, https://onnx.ai/onnx/operators
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from diffc.compiler.backends.onnx.packing import packed
from diffc.compiler.backends.onnx.state_sizes import state_sizes
from diffc.compiler.quantization.formats import FORMATS, Spec, parse_spec

DOMAIN = "diffc"

INT4, UINT4, INT8, UINT8 = (getattr(onnx_ir.DataType, name) for name in ("INT4", "UINT4", "INT8", "UINT8"))
FLOAT, INT32 = onnx_ir.DataType.FLOAT, onnx_ir.DataType.INT32
BOOL, BFLOAT16 = (getattr(onnx_ir.DataType, name) for name in ("BOOL", "BFLOAT16"))

Wider = Mapping[tuple[str, onnx_ir.DataType], onnx_ir.DataType]
"""Operators and the type of their results, and the type in which they are computed."""

NATIVE = {
    "e4m3": onnx_ir.DataType.FLOAT8E4M3FN,
    "e5m2": onnx_ir.DataType.FLOAT8E5M2,
    "e2m1": onnx_ir.DataType.FLOAT4E2M1,
    "e8m0": onnx_ir.DataType.FLOAT8E8M0,
}
"""Floating-point formats by their types in ONNX."""


def storage_type(form: str) -> onnx_ir.DataType:
    """Return the type in which values of a format are stored: integers in the next larger packed type."""
    small, large = (UINT4, UINT8) if form.startswith("u") else (INT4, INT8)
    dtype: onnx_ir.DataType = NATIVE[form] if form in NATIVE else small if FORMATS[form].bits <= 4 else large
    return dtype


class Dialect:
    """Replace the operators of a quantized graph by nodes, one after the other."""

    domains: ClassVar[frozenset[str]] = frozenset()
    """The domains of operators that it writes, beside ONNX's own."""

    integers: ClassVar[frozenset[int]] = frozenset({1, 2, 3, 4, 8})
    """Bits of the integers that activations are stored in; others are cut off at their ends, and stored in 8."""

    lacks: ClassVar[frozenset[str]] = frozenset({"GroupNormalization", "InstanceNormalization"})
    """The operators that engines compute inexactly: ONNX's own definition of the first takes the difference of two
    large sums for a variance, which is below zero, and its root NaN, where a group is constant."""

    wider: ClassVar[Wider] = {("Where", BOOL): UINT8, ("Where", BFLOAT16): FLOAT}
    """Selections for which ONNX Runtime has no kernel, and the type that holds the same values."""

    def __init__(self, graph: onnx_ir.Graph) -> None:
        self.graph, self.count = graph, 0
        self.at: Any = None
        self.float: Any = FLOAT
        self.constants: dict[Any, onnx_ir.Value] = {}

    def finish(self) -> None:
        """Rewrite the graph once every operator is written: legalize the others, and state all sizes."""
        for node in list(self.graph):
            dtype = next((value.dtype for value in (*node.outputs, *node.inputs[1:]) if value and value.dtype), None)
            if node.op_type in self.lacks:
                self._normalize_groups(node)
            elif dtype is not None and (node.op_type, dtype) in self.wider:
                self._widen(node, self.wider[node.op_type, dtype])
        state_sizes(self.graph)

    def _normalize_groups(self, node: Any) -> None:
        """Normalize each group as a layer, whose variance engines compute exactly, and scale each channel."""
        x, *affine = node.inputs
        shape, channels = x.shape, affine[0].shape[0] if affine[0].shape else 0  # 0 in a Reshape: as many as there are
        self.at, self.float = node, next((v.dtype for v in (*affine, x, *node.outputs) if v.dtype), FLOAT)
        groups = node.attributes["num_groups"].value if "num_groups" in node.attributes else channels
        rows = self.op("Reshape", x, self.sizes([0, groups, -1]))
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        value = self.op("LayerNormalization", rows, self.number(np.ones(1)), axis=-1, epsilon=epsilon)
        if groups == channels:
            value = self._scaled(value, affine, [channels or -1, 1])
        is_static = shape is not None and shape.is_static()
        value = self.op("Reshape", value, self.sizes(shape.numpy()) if is_static else self.op("Shape", x))
        if groups != channels:
            value = self._scaled(value, affine, [channels or -1, *(1 for _ in shape[2:])])
        self._take_place(node, value)

    def _scaled(self, value: onnx_ir.Value, affine: Sequence[onnx_ir.Value], column: Sequence[int]) -> onnx_ir.Value:
        """Multiply by the first weight of each channel and add the second."""
        for kind, weight in zip(("Mul", "Add"), affine, strict=True):
            value = self.op(kind, value, self.op("Reshape", weight, self.sizes(column)))
        return value

    def _widen(self, node: Any, wide: onnx_ir.DataType) -> None:
        """Select values in another type, between conversions."""
        self.at = node
        condition, *values = node.inputs
        narrow = next(value.dtype for value in (*node.outputs, *values) if value.dtype is not None)
        wider = self.op(node.op_type, condition, *(self.op("Cast", value, to=wide) for value in values))
        self._take_place(node, self.op("Cast", wider, to=narrow))

    def _take_place(self, node: onnx_ir.Node, value: onnx_ir.Value) -> None:
        """Put a value of the same shape and type in the place of a node."""
        value.shape, value.type = node.outputs[0].shape, node.outputs[0].type
        self.replace(node.outputs[0], value)
        self.graph.remove(node, safe=True)

    def write(self, node: onnx_ir.Node) -> None:
        """Replace a node; one that nothing reads any more is dropped."""
        self.at, self.float = node, node.outputs[0].dtype
        inputs = [*node.inputs, None]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        if node.outputs[0].uses() or node.outputs[0].is_graph_output():
            if node.op_type == "Dequantize":
                value = self.weight(inputs[0], inputs[1], inputs[2], **attributes)
            elif node.op_type == "FakeQuantize":
                value = self.activation(inputs[0], inputs[1], inputs[2], **attributes)
            else:
                value = self.grouped_activation(inputs[0], **attributes)
            if value is not None:
                value.shape, value.type = node.outputs[0].shape, onnx_ir.TensorType(self.float)
                self.replace(node.outputs[0], value)
        self.graph.remove(node, safe=True)

    def replace(self, value: onnx_ir.Value, new: onnx_ir.Value) -> None:
        """Replace a value in all its uses, the outputs of the graph and their names included."""
        if value.is_graph_output():
            value.name, new.name = f"{value.name}_replaced", value.name
        value.replace_all_uses_with(new, replace_graph_outputs=True)

    def op(
        self, kind: str, *inputs: onnx_ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any
    ) -> onnx_ir.Value:
        """Insert an operator before the node that is replaced; of several outputs, return the first."""
        self.count += 1
        node = onnx_ir.node(kind, list(inputs), attributes=attributes, domain=domain, num_outputs=outputs)
        node.name = f"q{self.count}"
        for at, output in enumerate(node.outputs):
            output.name = f"{node.name}_{at or ''}"
        self.graph.insert_before(self.at, node)
        return node.outputs[0]

    def constant(self, array: Any, dtype: onnx_ir.DataType | None = None) -> onnx_ir.Value:
        """Add a small initializer, or return the one with the same values."""
        tensor = onnx_ir.tensor(np.asarray(array), dtype=dtype)
        key = tensor.dtype, tuple(tensor.shape), tensor.tobytes()
        if key not in self.constants:
            self.count += 1
            tensor.name = f"q{self.count}"
            self.constants[key] = self.initializer(tensor)
        return self.constants[key]

    def number(self, value: Any) -> onnx_ir.Value:
        """Add constants of the type that the graph computes with here."""
        return self.constant(np.asarray(value, self.float.numpy()), self.float)

    def scalar(self, value: Any) -> onnx_ir.Value:
        """Return a constant tensor [1] as a scalar, as QuantizeLinear requires."""
        return self.constant(np.asarray(value.const_value.numpy()).reshape(()), value.const_value.dtype)

    def sizes(self, shape: Sequence[int]) -> onnx_ir.Value:
        return self.constant(np.array(shape, np.int64))

    def initializer(self, tensor: Any) -> onnx_ir.Value:
        """Add an initializer, unless there is one of that name."""
        if tensor.name not in self.graph.initializers:
            type_ = onnx_ir.TensorType(tensor.dtype)
            value = onnx_ir.Value(name=tensor.name, shape=tensor.shape, type=type_, const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[tensor.name]

    def weight(self, quantized: Any, scale: Any, zero: Any, group: int, form: str) -> onnx_ir.Value | None:
        """Write a quantized weight [rows, …]; return None where its readers were replaced with it."""
        shape = quantized.shape.numpy()
        offset = self.zero_point(zero, form)
        stored = shape if not group else [shape[0], math.prod(shape[1:])]  # four bits are not reshaped
        return self.dequantized(self.stored(quantized, form, stored), self.scale(scale), offset, group, shape)

    def stored(self, quantized: onnx_ir.Value, form: str, shape: Sequence[int] = ()) -> onnx_ir.Value:
        """Return quantized values in their storage type, packed where it has four bits, perhaps in another shape."""
        tensor: Any = quantized.const_value
        dtype = storage_type(form)
        if dtype == tensor.dtype:
            return quantized
        if dtype.bitwidth == 4:
            return self.pack(quantized, dtype, shape)
        name = f"{quantized.name}_{dtype.name.lower()}"
        return self.initializer(onnx_ir.Tensor(tensor.numpy(), dtype, shape=tensor.shape, name=name))

    def pack(self, quantized: onnx_ir.Value, dtype: onnx_ir.DataType, shape: Sequence[int] = ()) -> onnx_ir.Value:
        name = f"{quantized.name}_{dtype.name.lower()}"
        if name not in self.graph.initializers:
            tensor: Any = quantized.const_value
            size = onnx_ir.Shape(shape) if shape else tensor.shape
            self.initializer(onnx_ir.PackedTensor(packed(tensor.numpy()), dtype, shape=size, name=name))
        return self.graph.initializers[name]

    def scale(self, scale: Any, factor: float = 1.0) -> onnx_ir.Value:
        """Return scales in the type that the graph computes with; they may be quantized themselves."""
        producer = scale.producer()
        if is_quantized_op(producer, "Dequantize"):
            stored, outer = producer.inputs[:2]
            form = producer.attributes["form"].value
            if form == "e8m0":
                exponent = self.op("Sub", self.op("Cast", stored, to=FLOAT), self.constant(np.float32(127)))
                scale = self.op("Pow", self.constant(np.float32(2)), exponent)
                scale = scale if self.float == FLOAT else self.op("Cast", scale, to=self.float)
            else:
                scale = self.dequantized(self.stored(stored, form), self.scale(outer), None, 0, stored.shape.numpy())
        elif scale.dtype != self.float:
            scale = self.op("Cast", scale, to=self.float)
        return scale if factor == 1.0 else self.op("Mul", scale, self.number(factor))

    def dequantized(self, quantized: Any, scale: Any, zero: Any, group: int, shape: Sequence[int]) -> onnx_ir.Value:
        """Dequantize along the first axis, or in groups along all others."""
        if not group:
            one = scale.const_value is not None and scale.const_value.shape.numpy() == (1,)
            return self.op("DequantizeLinear", quantized, self.scalar(scale) if one else scale, zero, axis=0)
        there = quantized.const_value is not None and len(quantized.const_value.shape) == 2
        flat = quantized if there or len(shape) == 2 else self.op("Reshape", quantized, self.sizes([shape[0], -1]))
        value = self.op("DequantizeLinear", flat, scale, zero, axis=1, block_size=group)
        return value if len(shape) == 2 else self.op("Reshape", value, self.sizes(shape))

    def zero_point(self, zero: Any, form: str) -> onnx_ir.Value | None:
        if zero is None:
            return None
        array = np.asarray(zero.const_value.numpy())
        return self.constant(array.reshape(()) if array.shape == (1,) else array, storage_type(form))

    def activation(self, x: Any, scale: Any, zero: Any, form: str) -> onnx_ir.Value:
        """Write an activation that is quantized with a static scale."""
        number_format = FORMATS[form]
        if number_format.is_integer and number_format.bits not in self.integers:
            x = self.op("Clip", x, *(self.number(end) for end in _ends(form, scale, zero)))
            form = "uint8" if form.startswith("u") else "int8"
        point, factor = self.point(zero, form), self.scalar(scale)
        quantized = self.op("QuantizeLinear", x, factor, point)
        for use in list(self.at.outputs[0].uses())[1:]:  # ONNX Runtime needs one for each reader
            use.node.replace_input_with(use.idx, self._float_again(quantized, factor, point))
        return self._float_again(quantized, factor, point)

    def point(self, zero: Any, form: str) -> onnx_ir.Value:
        """Return the zero point of an activation, which also states the type of the quantized values."""
        return self.zero_point(zero, form) or self._zero(form)

    def _float_again(self, quantized: onnx_ir.Value, scale: onnx_ir.Value, zero: onnx_ir.Value) -> onnx_ir.Value:
        value = self.op("DequantizeLinear", quantized, scale, zero)
        value.shape, value.type = self.at.outputs[0].shape, onnx_ir.TensorType(self.float)
        return value

    def _zero(self, form: str) -> onnx_ir.Value:
        """Return a zero point, whose type is that of the quantized values."""
        dtype = storage_type(form)
        return self.constant(np.zeros((), dtype.numpy()), dtype)

    def to_e2m1(self, x: onnx_ir.Value) -> onnx_ir.Value:
        """Round to a four-bit float: its values are 0.5 apart below 2, 1 below 4, then 2."""
        half, one, two, four = map(self.number, (0.5, 1, 2, 4))
        size = self.op("Abs", x)
        coarse = self.op("Where", self.op("Less", size, four), one, two)
        spacing = self.op("Where", self.op("Less", size, two), half, coarse)
        rounded = self.op("Mul", self.op("Round", self.op("Div", x, spacing)), spacing)
        return self.op("Clip", rounded, self.number(-6), self.number(6))

    def grouped_activation(self, x: Any, spec: str) -> onnx_ir.Value:
        """Write an activation with a dynamic scale for each group of channels, in float arithmetic."""
        parsed = parse_spec(spec)
        assert parsed is not None
        shape = x.shape.numpy()
        blocks = self.op("Reshape", x, self.sizes([*shape[:-1], -1, parsed.group]))
        largest = self.op("ReduceMax", self.op("Abs", blocks), self.sizes([-1]), keepdims=1)
        scale = self._group_scale(largest, parsed)
        scale = self.op("Where", self.op("Greater", scale, self.number(0)), scale, self.number(1))
        scaled = self.op("Div", blocks, scale)
        number_format = parsed.format
        if number_format.name == "e2m1":
            quantized = self.to_e2m1(scaled)
        elif number_format.is_integer:
            quantized = self.op(
                "Clip", self.op("Round", scaled), self.number(number_format.lowest), self.number(number_format.highest)
            )
        else:
            quantized = self.op("Cast", self.op("Cast", scaled, to=NATIVE[number_format.name]), to=self.float)
        return self.op("Reshape", self.op("Mul", quantized, scale), self.sizes(shape))

    def _group_scale(self, largest: onnx_ir.Value, spec: Spec) -> onnx_ir.Value:
        if spec.scale == "e8m0":
            two, top = self.number(2), int(np.frexp(spec.format.highest)[1]) - 1
            floor = self.op("Floor", self.op("Div", self.op("Log", largest), self.number(np.log(2))))
            power = self.op("Pow", two, floor)  # the logarithm may be off by a rounding at powers of two
            low = self.op("Mul", power, self.number(0.5))
            power = self.op("Where", self.op("Greater", power, largest), low, power)
            high = self.op("Mul", power, two)
            power = self.op("Where", self.op("LessOrEqual", high, largest), high, power)
            return self.op("Mul", power, self.number(2.0**-top))
        scale = self.op("Div", largest, self.number(spec.format.highest))
        if spec.scale in NATIVE:
            scale = self.op("Cast", self.op("Cast", scale, to=NATIVE[spec.scale]), to=self.float)
        return scale


def _ends(form: str, scale: onnx_ir.Value, zero: onnx_ir.Value | None) -> list[NDArray[np.float32]]:
    """Return the smallest and the largest value of a number format at a scale."""
    assert scale.const_value is not None
    factor = np.asarray(scale.const_value.numpy(), np.float32)
    offset = zero.const_value.numpy().astype(np.float32) if zero is not None and zero.const_value else np.float32(0)
    ends = (FORMATS[form].lowest, FORMATS[form].highest)
    return [np.asarray((np.float32(end) - offset) * factor, np.float32).reshape(()) for end in ends]


def is_quantized_op(node: onnx_ir.Node | None, kind: str) -> bool:
    """Return whether a node is an operator of a quantized graph that is not written yet."""
    return node is not None and node.domain == DOMAIN and node.op_type == kind
