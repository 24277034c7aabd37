"""Open the graphs of a bundle as other tools do: by their paths, from wherever the process happens to be."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime


def check_by_path(file: Path) -> None:
    """Check an ONNX file with all of its types, shapes and weights; raises where something is not as ONNX says."""
    onnx.checker.check_model(str(file), full_check=True)
    onnx.load(file)


def check_by_onnx_runtime(file: Path) -> None:
    """Open an ONNX file in ONNX Runtime, without any option; raises where that cannot be."""
    onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
