"""Write the operators of quantized graphs for TensorRT: blocks of four-bit floats are its own operator's."""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir

from diffc.compiler.backends.onnx.dialect import NATIVE, Dialect, Wider
from diffc.compiler.backends.tensorrt.int4_layout import lay_out
from diffc.compiler.quantization.formats import parse_spec

TENSORRT = "trt"


class TensorRTDialect(Dialect):
    """Write operators that TensorRT's parser reads, with four-bit weights in the layout that its builder requires."""

    domains: ClassVar[frozenset[str]] = frozenset({TENSORRT})
    lacks: ClassVar[frozenset[str]] = frozenset()
    wider: ClassVar[Wider] = {}

    def grouped_activation(self, x: Any, spec: str) -> onnx_ir.Value:
        """Write blocks of four-bit floats with TensorRT's operator, and other groups in float arithmetic."""
        if str(parse_spec(spec)) == str(parse_spec("nvfp4:dynamic")):
            return self._nvfp4(x)
        return super().grouped_activation(x, spec)

    def finish(self) -> None:
        """Lay four-bit products out, and state every size."""
        lay_out(self.graph)
        super().finish()

    def _nvfp4(self, x: onnx_ir.Value) -> onnx_ir.Value:
        """Lower dynamic scales of blocks of sixteen to TensorRT's operator."""
        options = {"axis": -1, "block_size": 16, "scale_type": int(NATIVE["e4m3"])}
        one = self.number(1)
        quantized = self.op("TRT_FP4DynamicQuantize", x, one, domain=TENSORRT, outputs=2, **options)
        producer: Any = quantized.producer()
        scales = self.op("DequantizeLinear", producer.outputs[1], one)
        return self.op("DequantizeLinear", quantized, scales, axis=-1, block_size=16)
