"""Lower graphs for OpenVINO: the ONNX of ``onnx.py``, once OpenVINO has read it.

OpenVINO reads a graph's weights below the graph's own folder and nowhere else, so graphs lie where the bundle begins
(decision 0007).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from diffc.compiler.backends.onnx.cpu_dialect import CpuDialect
from diffc.compiler.backends.onnx.export import Onnx
from diffc.compiler.errors import BackendError, Progress
from diffc.compiler.ir.program import Graph
from diffc.compiler.quantization.formats import Scheme
from diffc.runtime.engines.openvino import openvino_core, openvino_version
from diffc.runtime.engines.session import reason
from diffc.runtime.precisions import PRECISIONS, Precision

if openvino_version() is None:
    raise ModuleNotFoundError("No module named 'openvino'", name="openvino")


class OpenVino(Onnx):
    """Write ONNX that OpenVINO can read; ``-bf16`` computes in bfloat16 too, where the processor can."""

    precisions: ClassVar[Mapping[str, Precision]] = {
        **PRECISIONS,
        "w8a8": replace(PRECISIONS["w8a8"], recipe="w8a8_openvino"),
    }
    dialect = CpuDialect

    @classmethod
    def adapted(cls, kind: str, scheme: Scheme) -> tuple[Scheme, str]:
        """Return a scheme in which convolutions have one scale; OpenVINO computes others in float."""
        activation, note = scheme.activation, ""
        if activation is not None and kind == "conv" and activation.per in ("token", "group"):
            activation = replace(activation, per="tensor", group=0, when="dynamic", scale="float32")
        if activation is not None and not activation.format.is_integer:
            note = f"OpenVINO computes {activation.format.name} in wider floats, on rounded values"
        return replace(scheme, activation=activation), note

    def lower(self, graphs: Sequence[Graph], precision: str, folder: Path, progress: Progress) -> dict[str, str]:
        """Write the files and read each; raises `BackendError` with OpenVINO's reason where it refuses one."""
        files = super().lower(graphs, precision, folder, progress)
        core = openvino_core()
        for graph in graphs:
            progress(f"check {graph.name}")
            try:
                core.read_model(folder / files[graph.name])
            except RuntimeError as error:
                what, where = f"OpenVINO refuses {graph.name}: {reason(error)}", f"component {graph.component}"
                raise BackendError(what, where=where, fix=f"use the target ort-{precision}") from error
        return files
