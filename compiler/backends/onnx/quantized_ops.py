"""Describe diffc's own operators as a plugin does, and replace them by the nodes that a dialect writes.

A quantized graph is exported with operators of the domain ``diffc``, once for all back ends.
"""

from __future__ import annotations

import onnx_ir

from diffc.compiler.backends.onnx.dialect import DOMAIN, Dialect
from diffc.runtime.plugins import CustomOperator, Plugin

PLUGIN = Plugin(
    DOMAIN,
    "diffc",
    "diffc.compiler.quantization.ops",
    (
        CustomOperator("dequantize", "Dequantize", 2, 1, ("group", "form")),
        CustomOperator("fake_quantize", "FakeQuantize", 2, 1, ("form",)),
        CustomOperator("fake_quantize_groups", "FakeQuantizeGroups", 1, 0, ("spec",)),
    ),
)
"""The operators of quantized graphs, which no engine computes as they are."""


def lower_quantized_ops(model: onnx_ir.Model, dialect: type[Dialect]) -> None:
    """Replace the operators of the domain ``diffc`` by the nodes that a dialect writes."""
    writer = dialect(model.graph)
    for node in reversed(list(model.graph)):  # readers come first: a weight is written with its scales
        if node.domain == DOMAIN:
            writer.write(node)
    writer.finish()
    model.opset_imports.pop(DOMAIN, None)
    for domain in {node.domain for node in model.graph} & dialect.domains:
        model.opset_imports[domain] = 1
