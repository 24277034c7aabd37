"""Lower graphs for ONNX Runtime: the ONNX of ``onnx.py``, once ONNX Runtime has accepted it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import onnxruntime

from diffc.compiler.backends.onnx.export import Onnx
from diffc.compiler.backends.ort_dialect import OrtDialect
from diffc.compiler.errors import BackendError, Progress
from diffc.compiler.ir.program import Graph
from diffc.compiler.quantization.formats import FORMATS, Scheme, Spec
from diffc.runtime.engines.ort import ENGINE
from diffc.runtime.plugins import find_plugin
from diffc.runtime.precisions import PRECISIONS, Precision


class Ort(Onnx):
    """Write ONNX that ONNX Runtime can load."""

    precisions: ClassVar[Mapping[str, Precision]] = {
        **PRECISIONS,
        "w8a8": replace(PRECISIONS["w8a8"], recipe="w8a8_onnx_runtime"),
    }
    dialect = OrtDialect
    engine = ENGINE

    @classmethod
    def adapted(cls, kind: str, scheme: Scheme) -> tuple[Scheme, str]:
        """Return a scheme whose integer convolutions have integer outputs; ONNX Runtime computes others in float."""
        activation, note = scheme.activation, ""
        if activation is None or scheme.weight is None:
            return scheme, note
        if kind == "conv" and activation.per in ("token", "group"):
            activation = replace(activation, per="tensor", group=0, when="dynamic", scale="float32")
        if not activation.format.is_integer or not (
            scheme.weight.format.is_integer or scheme.weight.format.name == "e2m1"
        ):
            note = f"ONNX Runtime computes {activation.format.name} in float32, on rounded values"
        elif kind == "conv" and activation.when != "static":
            note = (
                "ONNX Runtime computes convolutions with dynamic or step-indexed scales in float32, on rounded values"
            )
        elif activation.per == "group" and activation.format.bits < 8:
            note = "ONNX Runtime computes groups of less than 8 bits in float32, on rounded values"
        elif kind == "conv" and scheme.weight.scale in ("float32", "float16", "uint4"):
            return replace(scheme, output=scheme.output or Spec(FORMATS["uint8"])), note
        return replace(scheme, activation=activation, output=None), note

    def lower(self, graphs: Sequence[Graph], precision: str, folder: Path, progress: Progress) -> dict[str, str]:
        """Write the files and load each; raises `BackendError` with ONNX Runtime's reason where it refuses one."""
        files = super().lower(graphs, precision, folder, progress)
        for graph in graphs:
            progress(f"check {graph.name}")
            try:
                onnxruntime.InferenceSession(
                    (folder / files[graph.name]).read_bytes(),
                    _options(folder, self.custom_operators(graph.name)),
                    providers=["CPUExecutionProvider"],
                )
            except Exception as error:
                where = f"component {graph.component}"
                raise BackendError(
                    f"ONNX Runtime refuses {graph.name}: {error}", where=where, fix="use the target onnx-fp32"
                ) from error
        return files


def _options(folder: Path, domains: Iterable[str]) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    for domain in domains:
        options.register_custom_ops_library(str(find_plugin(domain).libraries[ENGINE]))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # weights stay in their file, unread
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return options
