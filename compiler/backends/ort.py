"""Lower graphs for ONNX Runtime: the ONNX of ``onnx.py``, once ONNX Runtime has accepted it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from diffc.compiler.backends.onnx import Onnx
from diffc.compiler.errors import BackendError
from diffc.compiler.ir import Graph
from diffc.compiler.target import Progress


class Ort(Onnx):
    """Write ONNX that ONNX Runtime can load."""

    dialect = "ort"

    def lower(self, graphs: Sequence[Graph], precision: str, folder: Path, progress: Progress) -> dict[str, str]:
        """Write the files and load each; raises `BackendError` with ONNX Runtime's reason where it refuses one."""
        files = super().lower(graphs, precision, folder, progress)
        for graph in graphs:
            progress(f"check {graph.name}")
            try:
                onnxruntime.InferenceSession(
                    (folder / files[graph.name]).read_bytes(), _options(folder), providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                where = f"component {graph.component}"
                raise BackendError(
                    f"ONNX Runtime refuses {graph.name}: {error}", where=where, fix="use the target onnx-fp32"
                ) from error
        return files


def _options(folder: Path) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # weights stay in their file, unread
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return options
