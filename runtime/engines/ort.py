"""Open ONNX graphs with ONNX Runtime, which every installation has."""

from __future__ import annotations

import re
from functools import cache
from typing import ClassVar

from diffc.runtime.bundle.onnx_external_data import opset, quantizes_to_floats
from diffc.runtime.bundle.open import Bundle
from diffc.runtime.engines.cpu import computes_in_bytes
from diffc.runtime.engines.session import Session
from diffc.runtime.errors import BundleError
from diffc.runtime.plugins import library_of

EXTERNAL = "session.model_external_initializers_file_folder_path"
WEIGHTS_ONLY = "session.qdq_matmulnbits_accuracy_level"  # 0: where only weights are quantized, compute in float
ONE_ARENA = "session.use_env_allocators"
IN_FLOAT = "session.disable_quant_qdq"  # 1: what Q/DQ describes is computed in float, on rounded values


FIRST = ((23, (1, 23)), (21, (1, 18)))
"""Opsets, and the first ONNX Runtime that computes all that a bundle uses of them."""

ENGINE = "onnxruntime"
"""Its name among the libraries of a plugin."""


class OnnxRuntime:
    """Run graphs on the CPU."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})

    @classmethod
    def check(cls, precision: str) -> None:
        """Accept every precision: the graph states its own types."""

    @classmethod
    def open(cls, bundle: Bundle, graph: str, threads: int) -> Session:
        """Open a graph."""
        return open_onnx_runtime(bundle, graph, threads)


def check_version(model: bytes, file: str) -> None:
    """Raise `BundleError` where the installed ONNX Runtime is older than the opset of a graph."""
    import onnxruntime

    version = opset(model)
    first = next((release for least, release in FIRST if version >= least), (0,))
    if tuple(map(int, re.findall(r"\d+", onnxruntime.__version__)[:2])) < first:
        needed = ".".join(map(str, first))
        what = f"{file} is of ONNX opset {version}, which ONNX Runtime reads from {needed} on: here is "
        fix = f"pip install --upgrade 'onnxruntime>={needed}'"
        raise BundleError(what + onnxruntime.__version__, where=file, fix=fix)


def open_onnx_runtime(bundle: Bundle, graph: str, threads: int) -> Session:
    """Open a graph on the CPU."""
    import onnxruntime

    model = bundle.graph(graph)
    check_version(model, bundle.manifest.graphs[graph])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry(EXTERNAL, str(bundle.root))
    options.add_session_config_entry(WEIGHTS_ONLY, "0")
    options.add_session_config_entry(IN_FLOAT, "0" if computes_in_bytes(bundle, graph) else "1")
    if quantizes_to_floats(model):  # which the optimizer takes for integers (seen in 1.31.1)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for domain, entry in bundle.manifest.operators(graph).items():
        if library := library_of(domain, entry, ENGINE):
            options.register_custom_ops_library(str(library))
    _share_memory()
    options.add_session_config_entry(ONE_ARENA, "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = [frozenset({port.name}) for port in session.get_inputs()]
    return Session(inputs, len(session.get_outputs()), lambda feeds: session.run(None, dict(feeds)), "ONNX Runtime")


@cache
def _share_memory() -> None:
    """Register one arena for all sessions: graphs run one after the other, and each arena would keep its peak."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, None)
