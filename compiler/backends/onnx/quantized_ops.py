"""Write the operators of quantized graphs in ONNX, in the spelling that an engine computes in few bits.

Portable ONNX says what is meant: codes of their own type, QuantizeLinear and DequantizeLinear. Engines for CPUs compute
convolutions and products of matrices on 8-bit integers, whatever the codes were stored as:

- Four-bit codes are stored packed and widened to 8 bits when the engine loads: ``Cast`` (and with whole multiples as
  scales of groups, ``Mul``) of constants are folded, a ``DequantizeLinear`` of 4 bits is not.
- A code of e2m1, doubled, is a whole number: a table of 16 entries makes 8-bit integers of it.
- ``MatMulNBits`` keeps blocks of 4 or 8 bits as they are; it computes in float, or at accuracy level 4 in 8 bits.
- Activations of less than 8 bits are cut off at the ends of their grid, and stored in 8.

Specification: ONNX operators, https://onnx.ai/onnx/operators, and those of ``com.microsoft``,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from onnx.defs import OpSchema
from onnxscript import values

import diffc.compiler.quantization.ops  # noqa: F401  (defines the operators)
from diffc.compiler.backends.tensorrt.int4_layout import lay_out, packed
from diffc.compiler.backends.tensorrt.state_sizes import state_sizes
from diffc.compiler.quantization.formats import E2M1, FORMATS, Spec, parse_spec

DOMAIN = "diffc"
MICROSOFT = "com.microsoft"
TENSORRT = "trt"

DIALECTS = ("portable", "ort", "ov", "trt")

ON_CPU = ("ort", "ov")
"""Dialects of engines that compute on 8-bit integers, whatever codes are stored as."""

INT4, UINT4, INT8, UINT8 = (getattr(onnx_ir.DataType, name) for name in ("INT4", "UINT4", "INT8", "UINT8"))
FLOAT, INT32 = onnx_ir.DataType.FLOAT, onnx_ir.DataType.INT32

NATIVE = {
    "e4m3": onnx_ir.DataType.FLOAT8E4M3FN,
    "e5m2": onnx_ir.DataType.FLOAT8E5M2,
    "e2m1": onnx_ir.DataType.FLOAT4E2M1,
    "e8m0": onnx_ir.DataType.FLOAT8E8M0,
}
"""Floating-point formats by their types in ONNX."""


_MULTIPLIED = ("int2", "int3", "int4")
"""Codes that a scale's multiple of at most 15 leaves within 8 bits."""


def storage_type(form: str) -> onnx_ir.DataType:
    """Give the type in which codes of a format are stored: integers in the next larger one that is packed."""
    small, large = (UINT4, UINT8) if form.startswith("u") else (INT4, INT8)
    found: onnx_ir.DataType = NATIVE[form] if form in NATIVE else small if FORMATS[form].bits <= 4 else large
    return found


def _operator(name: str, inputs: int, optional: int, attributes: Mapping[str, Any]) -> values.Op:
    kinds = OpSchema.FormalParameterOption
    given = [
        OpSchema.FormalParameter(f"input{at}", f"T{at}", param_option=kinds.Single if at < inputs else kinds.Optional)
        for at in range(inputs + optional)
    ]
    types = [f"tensor({t})" for t in ("float", "float16", "bfloat16", "int8", "uint8", "float8e4m3fn", "float8e5m2")]
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=given,
        outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
        type_constraints=[(parameter.type_str, types, "") for parameter in given],
        attributes=[OpSchema.Attribute(key, kind) for key, kind in attributes.items()],
    )
    return values.Op(values.Opset(DOMAIN, 1), name, schema)


_TYPES = OpSchema.AttrType
_DEQUANTIZE = _operator("Dequantize", 2, 1, {"group": _TYPES.INT, "form": _TYPES.STRING})
_FAKE_QUANTIZE = _operator("FakeQuantize", 2, 1, {"form": _TYPES.STRING})
_FAKE_QUANTIZE_GROUPS = _operator("FakeQuantizeGroups", 1, 0, {"spec": _TYPES.STRING})


def _dequantize(codes: Any, scale: Any, zero: Any, group: int, form: str, dtype: int) -> Any:
    return _DEQUANTIZE(codes, scale, zero, group=group, form=form)


def _fake_quantize(x: Any, scale: Any, zero: Any, form: str) -> Any:
    return _FAKE_QUANTIZE(x, scale, zero, form=form)


def _fake_quantize_groups(x: Any, spec: str) -> Any:
    return _FAKE_QUANTIZE_GROUPS(x, spec=spec)


def translations() -> dict[Any, Callable[..., Any]]:
    """Let the exporter keep the operators of quantized graphs as operators of the domain ``diffc``."""
    ops = torch.ops.diffc
    return {
        ops.dequantize.default: _dequantize,
        ops.fake_quantize.default: _fake_quantize,
        ops.fake_quantize_groups.default: _fake_quantize_groups,
    }


def spell(model: onnx_ir.Model, dialect: str) -> None:
    """Replace the operators of the domain ``diffc`` by what a dialect says for them."""
    writer = _Writer(model.graph, dialect)
    for node in reversed(list(model.graph)):  # what reads comes first: a weight is written with its scales
        if node.domain == DOMAIN:
            writer.write(node)
    if dialect == "trt":
        lay_out(model.graph)
        state_sizes(model.graph)
    model.opset_imports.pop(DOMAIN, None)
    for domain in {node.domain for node in model.graph} & {MICROSOFT, TENSORRT}:
        model.opset_imports[domain] = 1


class _Writer:
    """Put nodes in the place of one node after the other."""

    def __init__(self, graph: onnx_ir.Graph, dialect: str) -> None:
        self.graph, self.dialect, self.count = graph, dialect, 0
        self.at: Any = None
        self.float: Any = FLOAT
        self.constants: dict[Any, onnx_ir.Value] = {}

    def write(self, node: onnx_ir.Node) -> None:
        """Replace a node; one that nothing reads any more is dropped."""
        self.at, self.float = node, node.outputs[0].dtype
        inputs = [*node.inputs, None]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        if node.outputs[0].uses() or node.outputs[0].is_graph_output():
            if node.op_type == "Dequantize":
                made = self._weight(inputs[0], inputs[1], inputs[2], **attributes)
            elif node.op_type == "FakeQuantize":
                made = self._static(inputs[0], inputs[1], inputs[2], **attributes)
            else:
                made = self._groups(inputs[0], **attributes)
            if made is not None:
                made.shape, made.type = node.outputs[0].shape, onnx_ir.TensorType(self.float)
                self._replace(node.outputs[0], made)
        self.graph.remove(node, safe=True)

    def _replace(self, value: onnx_ir.Value, made: onnx_ir.Value) -> None:
        """Let all read another value, the graph's caller too, who knows it by its name."""
        if value.is_graph_output():
            value.name, made.name = f"{value.name}_replaced", value.name
        value.replace_all_uses_with(made, replace_graph_outputs=True)

    def op(
        self, kind: str, *inputs: onnx_ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any
    ) -> onnx_ir.Value:
        """Insert an operator before the node that is replaced; of several outputs, give the first."""
        self.count += 1
        node = onnx_ir.node(kind, list(inputs), attributes=attributes, domain=domain, num_outputs=outputs)
        node.name = f"q{self.count}"
        for at, made in enumerate(node.outputs):
            made.name = f"{node.name}_{at or ''}"
        self.graph.insert_before(self.at, node)
        return node.outputs[0]

    def constant(self, array: Any, dtype: onnx_ir.DataType | None = None) -> onnx_ir.Value:
        """Add a small initializer, one for all who want the same."""
        tensor = onnx_ir.tensor(np.asarray(array), dtype=dtype)
        key = tensor.dtype, tuple(tensor.shape), tensor.tobytes()
        if key not in self.constants:
            self.count += 1
            tensor.name = f"q{self.count}"
            self.constants[key] = self._initializer(tensor)
        return self.constants[key]

    def number(self, value: Any) -> onnx_ir.Value:
        """Add a number, or several, of the type that the graph computes with here."""
        return self.constant(np.asarray(value, self.float.numpy()), self.float)

    def scalar(self, value: Any) -> onnx_ir.Value:
        """Give a tensor [1] of one number that is known as a scalar, which is what QuantizeLinear wants."""
        return self.constant(np.asarray(value.const_value.numpy()).reshape(()), value.const_value.dtype)

    def _sizes(self, shape: Sequence[int]) -> onnx_ir.Value:
        return self.constant(np.array(shape, np.int64))

    def _initializer(self, tensor: Any) -> onnx_ir.Value:
        """Add an initializer, unless there is one of that name."""
        if tensor.name not in self.graph.initializers:
            type_ = onnx_ir.TensorType(tensor.dtype)
            value = onnx_ir.Value(name=tensor.name, shape=tensor.shape, type=type_, const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[tensor.name]

    # Weights

    def _weight(self, codes: Any, scale: Any, zero: Any, group: int, form: str) -> onnx_ir.Value | None:
        products = self._products()
        if self.dialect == "ort" and products and zero is None and _has_blocks(form, group):
            for product in products:
                self._blocks(product, codes, self._scale(scale), group, FORMATS[form].bits)
            return None
        shape = codes.shape.numpy()
        computed = self.dialect in ON_CPU and (form == "e2m1" or self._meets_integers())
        offset = self._zero_point(zero, ("uint8" if form.startswith("u") else "int8") if computed else form)
        multiples = scale.producer()
        if self.dialect in ON_CPU and zero is None and form in _MULTIPLIED and _is_whole(multiples):
            whole, outer = multiples.inputs
            return self._dequantized(self._multiplied(codes, form, whole, shape), self._scale(outer), None, 0, shape)
        stored = shape if computed or not group else [shape[0], math.prod(shape[1:])]  # four bits are not reshaped
        values_, factor = self._widened(codes, form) if computed else (self._stored(codes, form, stored), 1.0)
        return self._dequantized(values_, self._scale(scale, factor), offset, group, shape)

    def _products(self) -> list[onnx_ir.Node]:
        """List the products of matrices that read the weight, none where something else reads it, or in few bits."""
        found = []
        for use in self.at.outputs[0].uses():
            uses = use.node.outputs[0].uses() if use.node.op_type == "Transpose" else []
            if not uses or any(each.node.op_type != "MatMul" or each.idx != 1 for each in uses):
                return []
            found += [each.node for each in uses]
        given = [node.inputs[0].producer() for node in found if node.inputs[0] is not None]
        return [] if any(_is_diffc(each, "FakeQuantize") for each in given) else found

    def _meets_integers(self) -> bool:
        """Say whether the weight meets an activation of integers, or is a scale's whole multiple."""
        found, pending = list[onnx_ir.Node](), [use.node for use in self.at.outputs[0].uses()]
        while pending:
            node = pending.pop()
            found += [] if node.op_type == "Transpose" else [node]
            pending += [use.node for use in node.outputs[0].uses()] if node.op_type == "Transpose" else []
        return all(
            node.inputs[0] is not None and _is_diffc(node.inputs[0].producer(), "FakeQuantize") for node in found
        )

    def _stored(self, codes: onnx_ir.Value, form: str, shape: Sequence[int] = ()) -> onnx_ir.Value:
        """Give codes the type that they are stored in, packed where that is of four bits, and perhaps another shape."""
        tensor: Any = codes.const_value
        dtype = storage_type(form)
        if dtype == tensor.dtype:
            return codes
        if dtype.bitwidth == 4:
            return self._pack(codes, dtype, shape)
        name = f"{codes.name}_{dtype.name.lower()}"
        return self._initializer(onnx_ir.Tensor(tensor.numpy(), dtype, shape=tensor.shape, name=name))

    def _pack(self, codes: onnx_ir.Value, dtype: onnx_ir.DataType, shape: Sequence[int] = ()) -> onnx_ir.Value:
        name = f"{codes.name}_{dtype.name.lower()}"
        if name not in self.graph.initializers:
            tensor: Any = codes.const_value
            wanted = onnx_ir.Shape(shape) if shape else tensor.shape
            self._initializer(onnx_ir.PackedTensor(packed(tensor.numpy()), dtype, shape=wanted, name=name))
        return self.graph.initializers[name]

    def _widened(self, codes: onnx_ir.Value, form: str) -> tuple[onnx_ir.Value, float]:
        """Make 8-bit integers of codes, and give what they are multiplied with to be the numbers of the grid."""
        if form == "e2m1":
            stored = self._pack(codes, UINT4)
            doubled = (torch.cat([E2M1, -E2M1]) * 2).numpy().astype(np.int8)
            return self.op("Gather", self.constant(doubled), self.op("Cast", stored, to=INT32)), 0.5
        stored = self._stored(codes, form)
        if storage_type(form).bitwidth == 4:
            stored = self.op("Cast", stored, to=UINT8 if form.startswith("u") else INT8)
        return stored, 1.0

    def _multiplied(self, codes: Any, form: str, multiples: Any, shape: Sequence[int]) -> onnx_ir.Value:
        """Multiply each group of codes with a whole number, so that a row has one scale."""
        rows, groups = multiples.shape.numpy()
        size = math.prod(shape) // (rows * groups)
        blocks = self.op("Cast", self._stored(codes, form, [rows, groups, size]), to=INT8)
        factors = self.op("Cast", self._stored(multiples, "uint4", [rows, groups, 1]), to=INT8)
        return self.op("Reshape", self.op("Mul", blocks, factors), self._sizes(shape))

    def _scale(self, scale: Any, factor: float = 1.0) -> onnx_ir.Value:
        """Give scales in the type that the graph computes with; they may be codes themselves."""
        made = scale.producer()
        if _is_diffc(made, "Dequantize"):
            stored, outer = made.inputs[:2]
            form = made.attributes["form"].value
            if form == "e8m0":
                exponent = self.op("Sub", self.op("Cast", stored, to=FLOAT), self.constant(np.float32(127)))
                scale = self.op("Pow", self.constant(np.float32(2)), exponent)
                scale = scale if self.float == FLOAT else self.op("Cast", scale, to=self.float)
            else:
                scale = self._dequantized(self._stored(stored, form), self._scale(outer), None, 0, stored.shape.numpy())
        elif scale.dtype != self.float:
            scale = self.op("Cast", scale, to=self.float)
        return scale if factor == 1.0 else self.op("Mul", scale, self.number(factor))

    def _dequantized(self, codes: Any, scale: Any, zero: Any, group: int, shape: Sequence[int]) -> onnx_ir.Value:
        """Dequantize along the first axis, or in groups along all others."""
        if not group:
            one = scale.const_value is not None and scale.const_value.shape.numpy() == (1,)
            return self.op("DequantizeLinear", codes, self.scalar(scale) if one else scale, zero, axis=0)
        there = codes.const_value is not None and len(codes.const_value.shape) == 2
        flat = codes if there or len(shape) == 2 else self.op("Reshape", codes, self._sizes([shape[0], -1]))
        made = self.op("DequantizeLinear", flat, scale, zero, axis=1, block_size=group)
        return made if len(shape) == 2 else self.op("Reshape", made, self._sizes(shape))

    def _zero_point(self, zero: Any, form: str) -> onnx_ir.Value | None:
        if zero is None:
            return None
        array = np.asarray(zero.const_value.numpy())
        return self.constant(array.reshape(()) if array.shape == (1,) else array, storage_type(form))

    def _blocks(self, product: onnx_ir.Node, codes: Any, scale: onnx_ir.Value, group: int, bits: int) -> None:
        """Let MatMulNBits multiply, which takes unsigned codes [rows, groups, bytes]."""
        rows, columns = codes.shape.numpy()
        name = f"{codes.name}_blocks"
        if name not in self.graph.initializers:
            unsigned = np.asarray(codes.const_value.numpy()).astype(np.int16) + 2 ** (bits - 1)
            padding = ((0, 0), (0, -columns % group))
            padded = np.pad(unsigned, padding, constant_values=2 ** (bits - 1)).astype(np.uint8)
            data = packed(padded) if bits == 4 else padded
            self._initializer(onnx_ir.tensor(data.reshape(rows, -1, group * bits // 8), name=name))
        x: Any = product.inputs[0]
        made, accuracy = x.producer(), 0
        if _is_diffc(made, "FakeQuantizeGroups"):
            spec = parse_spec(made.attributes["spec"].value)
            if spec is not None and (spec.format.name, spec.group) == ("int8", group):
                x, accuracy = made.inputs[0], 4
        sizes = {"K": columns, "N": rows, "bits": bits, "block_size": group, "accuracy_level": accuracy}
        blocks = onnx_ir.node(
            "MatMulNBits",
            [x, self.graph.initializers[name], self.op("Reshape", scale, self._sizes([-1]))],
            attributes=sizes,
            domain=MICROSOFT,
        )
        blocks.outputs[0].name = f"{product.outputs[0].name}_blocks"
        blocks.outputs[0].shape, blocks.outputs[0].type = product.outputs[0].shape, onnx_ir.TensorType(self.float)
        transpose = product.inputs[1].producer() if product.inputs[1] is not None else None
        self.graph.insert_before(product, blocks)
        self._replace(product.outputs[0], blocks.outputs[0])
        self.graph.remove(product, safe=True)
        if transpose is not None and not transpose.outputs[0].uses():
            self.graph.remove(transpose, safe=True)

    # Activations

    def _static(self, x: Any, scale: Any, zero: Any, form: str) -> onnx_ir.Value:
        grid = FORMATS[form]
        if form == "e2m1" and self.dialect in ON_CPU:
            return self.op("Mul", self._to_e2m1(self.op("Div", x, scale)), scale)
        if grid.is_integer and grid.bits < 8 and (self.dialect in ON_CPU or grid.bits > 4):
            x = self.op("Clip", x, *(self.number(end) for end in _ends(form, scale, zero)))
            form = "uint8" if form.startswith("u") else "int8"
        if form in NATIVE and self.dialect == "ort":  # which takes QuantizeLinear of any type for that of integers
            codes = self.op("Cast", self.op("Cast", self.op("Div", x, scale), to=NATIVE[form]), to=self.float)
            return self.op("Mul", codes, scale)
        point = self._zero_point(zero, form) or self._zero(form)
        if form == "int8" and self.dialect == "ort":
            # ONNX Runtime computes products on x86 with bytes without a sign, and makes such of others for one reader.
            point = self.constant(np.uint8(128))
        factor = self.scalar(scale)
        codes = self.op("QuantizeLinear", x, factor, point)
        for use in list(self.at.outputs[0].uses())[1:]:  # ONNX Runtime wants one for each reader
            use.node.replace_input_with(use.idx, self._float_again(codes, factor, point))
        return self._float_again(codes, factor, point)

    def _float_again(self, codes: onnx_ir.Value, scale: onnx_ir.Value, zero: onnx_ir.Value) -> onnx_ir.Value:
        made = self.op("DequantizeLinear", codes, scale, zero)
        made.shape, made.type = self.at.outputs[0].shape, onnx_ir.TensorType(self.float)
        return made

    def _zero(self, form: str) -> onnx_ir.Value:
        """Give a zero point that says of which type codes are."""
        dtype = storage_type(form)
        return self.constant(np.zeros((), dtype.numpy()), dtype)

    def _to_e2m1(self, x: onnx_ir.Value) -> onnx_ir.Value:
        """Round to a four-bit float: the distance of its numbers is 0.5 below 2, 1 below 4, then 2."""
        half, one, two, four = map(self.number, (0.5, 1, 2, 4))
        size = self.op("Abs", x)
        coarse = self.op("Where", self.op("Less", size, four), one, two)
        spacing = self.op("Where", self.op("Less", size, two), half, coarse)
        rounded = self.op("Mul", self.op("Round", self.op("Div", x, spacing)), spacing)
        return self.op("Clip", rounded, self.number(-6), self.number(6))

    def _groups(self, x: Any, spec: str) -> onnx_ir.Value:
        """Round with a scale for each group of channels, in float arithmetic."""
        found = parse_spec(spec)
        assert found is not None
        shape = x.shape.numpy()
        if self.dialect == "trt" and str(found) == str(parse_spec("nvfp4:dynamic")):
            return self._nvfp4(x)
        blocks = self.op("Reshape", x, self._sizes([*shape[:-1], -1, found.group]))
        largest = self.op("ReduceMax", self.op("Abs", blocks), self._sizes([-1]), keepdims=1)
        scale = self._group_scale(largest, found)
        scale = self.op("Where", self.op("Greater", scale, self.number(0)), scale, self.number(1))
        scaled = self.op("Div", blocks, scale)
        grid = found.format
        if grid.name == "e2m1":
            codes = self._to_e2m1(scaled)
        elif grid.is_integer:
            codes = self.op("Clip", self.op("Round", scaled), self.number(grid.lowest), self.number(grid.highest))
        else:
            codes = self.op("Cast", self.op("Cast", scaled, to=NATIVE[grid.name]), to=self.float)
        return self.op("Reshape", self.op("Mul", codes, scale), self._sizes(shape))

    def _nvfp4(self, x: onnx_ir.Value) -> onnx_ir.Value:
        """Let TensorRT find the scales of blocks of sixteen, which it multiplies as they are."""
        options = {"axis": -1, "block_size": 16, "scale_type": int(NATIVE["e4m3"])}
        one = self.number(1)
        codes = self.op("TRT_FP4DynamicQuantize", x, one, domain=TENSORRT, outputs=2, **options)
        made: Any = codes.producer()
        scales = self.op("DequantizeLinear", made.outputs[1], one)
        return self.op("DequantizeLinear", codes, scales, axis=-1, block_size=16)

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
    """Give the smallest and the largest number that a grid holds at a scale."""
    assert scale.const_value is not None
    factor = np.asarray(scale.const_value.numpy(), np.float32)
    offset = zero.const_value.numpy().astype(np.float32) if zero is not None and zero.const_value else np.float32(0)
    ends = (FORMATS[form].lowest, FORMATS[form].highest)
    return [np.asarray((np.float32(end) - offset) * factor, np.float32).reshape(()) for end in ends]


def _is_diffc(node: onnx_ir.Node | None, kind: str) -> bool:
    return node is not None and node.domain == DOMAIN and node.op_type == kind


def _is_whole(node: onnx_ir.Node | None) -> bool:
    """Say whether scales are whole multiples of others."""
    return _is_diffc(node, "Dequantize") and FORMATS[node.attributes["form"].value].is_integer  # type: ignore[union-attr]


def _has_blocks(form: str, group: int) -> bool:
    return form in ("int4", "int8") and group in (16, 32, 64, 128, 256)
