"""Write the operators of quantized graphs for engines of CPUs, which compute on 8-bit integers.

- Four-bit values are stored packed and widened to 8 bits when the engine loads: ``Cast`` (and with whole multiples as
  scales of groups, ``Mul``) of constants are folded, a ``DequantizeLinear`` of 4 bits is not.
- A value of e2m1, doubled, is an integer: a table of 16 entries maps it to 8 bits.
- Activations of less than 8 bits are cut off at the ends of their number format, and stored in 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir
import torch

from diffc.compiler.backends.onnx.dialect import (
    INT8,
    INT32,
    UINT4,
    UINT8,
    Dialect,
    Wider,
    is_quantized_op,
    storage_type,
)
from diffc.compiler.quantization.formats import E2M1, FORMATS

MULTIPLIED = ("int2", "int3", "int4")
"""Formats whose values a scale's multiple of at most 15 leaves within 8 bits."""


class CpuDialect(Dialect):
    """Write operators that an engine computes in 8-bit integers."""

    integers: ClassVar[frozenset[int]] = frozenset({8})
    lacks: ClassVar[frozenset[str]] = frozenset()
    wider: ClassVar[Wider] = {}

    def weight(self, quantized: Any, scale: Any, zero: Any, group: int, form: str) -> onnx_ir.Value | None:
        """Write a weight that is multiplied by integers as 8-bit integers, in whichever format it is stored."""
        shape, multiples = quantized.shape.numpy(), scale.producer()
        if zero is None and form in MULTIPLIED and _is_whole(multiples):
            integers, outer = multiples.inputs
            return self.dequantized(
                self._multiplied(quantized, form, integers, shape), self.scale(outer), None, 0, shape
            )
        if form != "e2m1" and not self._meets_integers():
            return super().weight(quantized, scale, zero, group, form)
        offset = self.zero_point(zero, "uint8" if form.startswith("u") else "int8")
        values, factor = self._widened(quantized, form)
        return self.dequantized(values, self.scale(scale, factor), offset, group, shape)

    def activation(self, x: Any, scale: Any, zero: Any, form: str) -> onnx_ir.Value:
        """Round to four-bit floats in float arithmetic; write integers in 8 bits."""
        if form == "e2m1":
            return self.op("Mul", self.to_e2m1(self.op("Div", x, scale)), scale)
        return super().activation(x, scale, zero, form)

    def _meets_integers(self) -> bool:
        """Return whether the weight is multiplied by an integer activation, or is an integer multiple of a scale."""
        consumers, pending = list[onnx_ir.Node](), [use.node for use in self.at.outputs[0].uses()]
        while pending:
            node = pending.pop()
            consumers += [] if node.op_type == "Transpose" else [node]
            pending += [use.node for use in node.outputs[0].uses()] if node.op_type == "Transpose" else []
        return all(
            node.inputs[0] is not None and is_quantized_op(node.inputs[0].producer(), "FakeQuantize")
            for node in consumers
        )

    def _widened(self, quantized: onnx_ir.Value, form: str) -> tuple[onnx_ir.Value, float]:
        """Return quantized values as 8-bit integers, and the factor that makes them values of the number format."""
        if form == "e2m1":
            stored = self.pack(quantized, UINT4)
            doubled = (torch.cat([E2M1, -E2M1]) * 2).numpy().astype(np.int8)
            return self.op("Gather", self.constant(doubled), self.op("Cast", stored, to=INT32)), 0.5
        stored = self.stored(quantized, form)
        if storage_type(form).bitwidth == 4:
            stored = self.op("Cast", stored, to=UINT8 if form.startswith("u") else INT8)
        return stored, 1.0

    def _multiplied(self, quantized: Any, form: str, multiples: Any, shape: Sequence[int]) -> onnx_ir.Value:
        """Multiply each group of quantized values by an integer, so that a row has one scale."""
        rows, groups = multiples.shape.numpy()
        size = math.prod(shape) // (rows * groups)
        blocks = self.op("Cast", self.stored(quantized, form, [rows, groups, size]), to=INT8)
        factors = self.op("Cast", self.stored(multiples, "uint4", [rows, groups, 1]), to=INT8)
        return self.op("Reshape", self.op("Mul", blocks, factors), self.sizes(shape))


def _is_whole(node: onnx_ir.Node | None) -> bool:
    """Return whether scales are integer multiples of other scales."""
    return is_quantized_op(node, "Dequantize") and FORMATS[node.attributes["form"].value].is_integer  # type: ignore[union-attr]
