"""Open ONNX graphs with OpenVINO, the faster engine on x86."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, ClassVar, cast

from diffc.runtime.bundle.open import Bundle
from diffc.runtime.engines.cpu import computes_in_bytes, cpu_flags, is_x86
from diffc.runtime.engines.ort import open_onnx_runtime
from diffc.runtime.engines.registry import split_target
from diffc.runtime.engines.session import Array, Session
from diffc.runtime.errors import BundleError
from diffc.runtime.precisions import PRECISIONS

TELEMETRY = "openvino_telemetry"
INSTALL = "pip install 'diffc[openvino]'"
LARGE = 1 << 29
"""Bytes of a bundle for which OpenVINO makes up for the time in which it opens graphs."""

WIDE = "avx512f"
"""The name in /proc/cpuinfo of the instructions with which OpenVINO was measured to be faster."""

TYPES = {"float32": "f32", "bfloat16": "bf16"}
"""Types of floats by their names in OpenVINO."""


class OpenVino:
    """Run graphs on the CPU, in the type that the target's precision names."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})

    @classmethod
    def check(cls, precision: str) -> None:
        """Raise `BundleError` where OpenVINO is not installed, or the precision is unknown."""
        if precision not in PRECISIONS:
            fix = f"upgrade diffc, or build for one of {', '.join(PRECISIONS)}"
            raise BundleError(f"OpenVINO runs no precision {precision[:40]!r}", where="manifest.json", fix=fix)
        openvino_core()

    @classmethod
    def open(cls, bundle: Bundle, graph: str, threads: int) -> Session:
        """Open a graph."""
        return open_openvino(bundle, graph, threads)


def open_openvino(bundle: Bundle, graph: str, threads: int) -> Session:
    """Compile a graph in the types of the target; arithmetic between components is always in float32.

    OpenVINO computes float64 in float32, so a graph that has any is left to ONNX Runtime.
    """
    core, file = openvino_core(), bundle.manifest.graphs[graph]
    if not file.endswith(".onnx"):  # by which OpenVINO chooses among its readers
        raise ValueError(f"{file} is no .onnx file")
    model = core.read_model(bundle.root / file)
    if any(port.get_element_type().to_string() == "f64" for op in model.get_ops() for port in op.outputs()):
        return open_onnx_runtime(bundle, graph, threads)
    component, precision = bundle.manifest.component(graph), split_target(bundle.manifest.target)[1]
    options = {"INFERENCE_PRECISION_HINT": computes(precision) if component else "f32"}
    options |= {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    options |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}  # the graph states which activations are low-bit
    options |= {} if computes_in_bytes(bundle, graph) else {"LP_TRANSFORMS_MODE": "NO"}
    options |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
    options |= {"SNIPPETS_MODE": "DISABLE"} if _overwrites_queries(model) else {}
    compiled = core.compile_model(model, "CPU", options)
    idle: list[Any] = []  # requests hold the memory of what a graph computes, so they are used again

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        results = request.infer(dict(feeds))
        outputs = [results[at] for at in range(len(compiled.outputs))]
        idle.append(request)
        return outputs

    return Session([frozenset(port.get_names()) for port in compiled.inputs], len(compiled.outputs), run, "OpenVINO")


def _overwrites_queries(model: Any) -> bool:
    """Return whether OpenVINO's fused attention would overwrite queries that it has yet to read.

    It writes to the queries' memory where its result has their shape, but may transpose heads and tokens on the way:
    with as many queries as heads, the shape does not tell, and an open size may become as many. Seen in 2026.4.1; it
    computes right when it does not fuse.
    """
    attention = ("ScaledDotProductAttention", "Softmax")
    shapes = [op.get_input_partial_shape(0) for op in model.get_ordered_ops() if op.get_type_name() in attention]
    pairs = [(shape[-3], shape[-2]) for shape in shapes if shape.rank.is_static and shape.rank.get_length() > 2]
    return any(heads.compatible(queries) and heads != 1 and queries != 1 for heads, queries in pairs)


def computes(precision: str) -> str:
    """Return the type in which OpenVINO computes a precision on this CPU, where not in integers: f32 without bf16."""
    able = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    type_ = TYPES[PRECISIONS[precision].cpu]
    return type_ if type_.upper() in able else "f32"


@cache
def openvino_core() -> Any:
    """Return OpenVINO's one core, without telemetry. Raises `BundleError` where OpenVINO is not installed.

    Importing it would tell an analytics service so. It does without the package that does that where there is none.
    """
    there = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = cast(ModuleType, None)  # which makes Python refuse to import a module
    try:
        import openvino
    except ImportError as error:
        raise BundleError(
            f"OpenVINO cannot be imported: {error}", fix=f"{INSTALL}, or build for the target ort-fp32"
        ) from error
    finally:
        del sys.modules[TELEMETRY]
        if there is not None:
            sys.modules[TELEMETRY] = there
    return openvino.Core()


def recommended() -> str:
    """Name the backend whose engine is the faster one on this CPU, be it installed or not."""
    return "ov" if is_x86() and cpu_flags() >= {WIDE} else "ort"


def advice(target: str, size: int) -> str | None:
    """Return a line of advice where this CPU has a faster engine for a bundle of so many bytes, else None."""
    if not target.startswith("ort-") or size < LARGE or recommended() != "ov":
        return None
    install = "" if openvino_version() else f" ({INSTALL})"
    return f"this CPU is faster with OpenVINO: build for ov-{target.removeprefix('ort-')}{install}"


def openvino_version() -> str | None:
    """Return the version of the installed OpenVINO, without importing it."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None
