"""Define diffc's own operators in ONNX, and replace them by what a dialect writes for them.

A quantized graph is exported with operators of the domain ``diffc``, once for all back ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir
import torch
from onnx.defs import OpSchema
from onnxscript import values

import diffc.compiler.quantization.ops  # noqa: F401  (defines the operators)
from diffc.compiler.backends.onnx.dialect import DOMAIN, Dialect


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


def lower_quantized_ops(model: onnx_ir.Model, dialect: type[Dialect]) -> None:
    """Replace the operators of the domain ``diffc`` by what a dialect writes for them."""
    writer = dialect(model.graph)
    for node in reversed(list(model.graph)):  # what reads comes first: a weight is written with its scales
        if node.domain == DOMAIN:
            writer.write(node)
    writer.finish()
    model.opset_imports.pop(DOMAIN, None)
    for domain in {node.domain for node in model.graph} & dialect.domains:
        model.opset_imports[domain] = 1
