"""Write the operators of quantized graphs for ONNX Runtime.

``MatMulNBits`` keeps blocks of 4 or 8 bits as they are; it computes in float, or at accuracy level 4 in 8 bits.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir

from diffc.compiler.backends.onnx.cpu_dialect import CpuDialect
from diffc.compiler.backends.onnx.dialect import NATIVE, Dialect, is_quantized_op
from diffc.compiler.backends.onnx.packing import packed
from diffc.compiler.quantization.formats import FORMATS, parse_spec

MICROSOFT = "com.microsoft"


class OrtDialect(CpuDialect):
    """Write the operators that ONNX Runtime's CPU kernels compute."""

    domains: ClassVar[frozenset[str]] = frozenset({MICROSOFT})
    lacks, wider = Dialect.lacks, Dialect.wider

    def weight(self, quantized: Any, scale: Any, zero: Any, group: int, form: str) -> onnx_ir.Value | None:
        """Write a weight in groups that products alone read as blocks of the product."""
        products = self._products()
        if products and zero is None and _has_blocks(form, group):
            for product in products:
                self._blocks(product, quantized, self.scale(scale), group, FORMATS[form].bits)
            return None
        return super().weight(quantized, scale, zero, group, form)

    def activation(self, x: Any, scale: Any, zero: Any, form: str) -> onnx_ir.Value:
        """Round to floats by casting: ONNX Runtime takes QuantizeLinear of any type for that of integers."""
        if form in NATIVE and form != "e2m1":
            quantized = self.op("Cast", self.op("Cast", self.op("Div", x, scale), to=NATIVE[form]), to=self.float)
            return self.op("Mul", quantized, scale)
        return super().activation(x, scale, zero, form)

    def point(self, zero: Any, form: str) -> onnx_ir.Value:
        """Shift signed integers: kernels for x86 multiply unsigned bytes, and convert those of a single reader only."""
        point = super().point(zero, form)
        return self.constant(np.uint8(128)) if form == "int8" else point

    def _products(self) -> list[onnx_ir.Node]:
        """List the matrix products that read the weight; none where another node reads it, or a low-bit one."""
        consumers = []
        for use in self.at.outputs[0].uses():
            uses = use.node.outputs[0].uses() if use.node.op_type == "Transpose" else []
            if not uses or any(each.node.op_type != "MatMul" or each.idx != 1 for each in uses):
                return []
            consumers += [each.node for each in uses]
        producers = [node.inputs[0].producer() for node in consumers if node.inputs[0] is not None]
        return [] if any(is_quantized_op(each, "FakeQuantize") for each in producers) else consumers

    def _blocks(self, product: onnx_ir.Node, quantized: Any, scale: onnx_ir.Value, group: int, bits: int) -> None:
        """Lower a product to MatMulNBits, which reads unsigned quantized values [rows, groups, bytes]."""
        rows, columns = quantized.shape.numpy()
        name = f"{quantized.name}_blocks"
        if name not in self.graph.initializers:
            unsigned = np.asarray(quantized.const_value.numpy()).astype(np.int16) + 2 ** (bits - 1)
            padding = ((0, 0), (0, -columns % group))
            padded = np.pad(unsigned, padding, constant_values=2 ** (bits - 1)).astype(np.uint8)
            data = packed(padded) if bits == 4 else padded
            self.initializer(onnx_ir.tensor(data.reshape(rows, -1, group * bits // 8), name=name))
        x: Any = product.inputs[0]
        producer, accuracy = x.producer(), 0
        if is_quantized_op(producer, "FakeQuantizeGroups"):
            spec = parse_spec(producer.attributes["spec"].value)
            if spec is not None and (spec.format.name, spec.group) == ("int8", group):
                x, accuracy = producer.inputs[0], 4
        sizes = {"K": columns, "N": rows, "bits": bits, "block_size": group, "accuracy_level": accuracy}
        blocks = onnx_ir.node(
            "MatMulNBits",
            [x, self.graph.initializers[name], self.op("Reshape", scale, self.sizes([-1]))],
            attributes=sizes,
            domain=MICROSOFT,
        )
        blocks.outputs[0].name = f"{product.outputs[0].name}_blocks"
        blocks.outputs[0].shape, blocks.outputs[0].type = product.outputs[0].shape, onnx_ir.TensorType(self.float)
        transpose = product.inputs[1].producer() if product.inputs[1] is not None else None
        self.graph.insert_before(product, blocks)
        self.replace(product.outputs[0], blocks.outputs[0])
        self.graph.remove(product, safe=True)
        if transpose is not None and not transpose.outputs[0].uses():
            self.graph.remove(transpose, safe=True)


def _has_blocks(form: str, group: int) -> bool:
    return form in ("int4", "int8") and group in (16, 32, 64, 128, 256)
