"""Open graphs with an engine: ONNX Runtime, which is always there, OpenVINO, which is faster on x86, or TensorRT.

The target that a bundle was built for names the engine, which is imported when its first graph is opened. A graph whose
engine of TensorRT this machine cannot run is opened with ONNX Runtime instead, and a warning says why.
"""

from __future__ import annotations

import hashlib
import mmap
import platform
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from numpy.typing import NDArray

from diffc.runtime.bundle.onnx_external_data import external_files, output_names
from diffc.runtime.bundle.open import Bundle
from diffc.runtime.disk_cache import Cache
from diffc.runtime.engines.cuda import Device, Gpu, find_cuda, find_gpu
from diffc.runtime.engines.tensorrt_library import Execution, Library, Plan, find_library
from diffc.runtime.errors import BundleError, DiffcWarning

Array = NDArray[Any]

TELEMETRY = "openvino_telemetry"
INSTALL = "pip install 'diffc[openvino]'"
LARGE = 1 << 29
"""Bytes of a bundle for which OpenVINO makes up for the time in which it opens graphs."""

EXTERNAL = "session.model_external_initializers_file_folder_path"
WEIGHTS_ONLY = "session.qdq_matmulnbits_accuracy_level"  # 0: where only weights are quantized, compute in float
ONE_ARENA = "session.use_env_allocators"
IN_FLOAT = "session.disable_quant_qdq"  # 1: what Q/DQ says is computed in float, on rounded numbers
NATIVE_FP8 = ("onnx-fp8", "trt-fp8")
"""Targets whose codes are of 8-bit floats, which ONNX Runtime's optimizer takes for integers (seen in 1.31.1)."""
X86 = ("x86_64", "AMD64")
WIDE = "avx512f"
"""What /proc/cpuinfo calls the instructions with which OpenVINO was measured to be faster."""
VNNI = {"avx512_vnni", "avx_vnni"}
"""What it calls those that sum products of bytes in 32 bits."""

COMPUTES = {"fp32": "f32", "fp16": "f32", "bf16": "bf16"} | dict.fromkeys(
    ("w8a8", "w4a16", "w4a8", "w4a4", "fp8", "fp4"), "bf16"
)
"""What OpenVINO computes in for each precision of a target ``ov-…``, where not in integers; f32 stands for bf16 where
the CPU lacks that."""


@dataclass(frozen=True)
class Session:
    """Hold an opened graph: the names that each input goes by, how many outputs there are, and how to compute them.

    Threads may share ``run``, which takes an array for each input and gives arrays that nobody else writes. ``engine``
    says in a few words who computes.
    """

    inputs: Sequence[frozenset[str]]
    outputs: int
    run: Callable[[Mapping[str, Array]], list[Array]]
    engine: str


Engine = Callable[[Bundle, str, int], Session]
"""Opens a graph by its name, for so many threads; 0 takes all cores."""


def _onnx_runtime(bundle: Bundle, graph: str, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry(EXTERNAL, str(bundle.root))
    options.add_session_config_entry(WEIGHTS_ONLY, "0")
    options.add_session_config_entry(IN_FLOAT, "0" if _in_bytes(bundle, graph) else "1")
    if bundle.manifest.target.startswith(NATIVE_FP8):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    _share_memory()
    options.add_session_config_entry(ONE_ARENA, "1")
    session = onnxruntime.InferenceSession(bundle.graph(graph), options, providers=["CPUExecutionProvider"])
    inputs = [frozenset({port.name}) for port in session.get_inputs()]
    return Session(inputs, len(session.get_outputs()), lambda feeds: session.run(None, dict(feeds)), "ONNX Runtime")


@cache
def _share_memory() -> None:
    """Let the sessions of ONNX Runtime have one arena: graphs run one after the other, and each would keep its peak."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, None)


def _openvino(bundle: Bundle, graph: str, threads: int) -> Session:
    """Compute as the target says, where OpenVINO would choose; arithmetic of no component is always in float32.

    OpenVINO computes float64 in float32, so a graph that has any is left to ONNX Runtime.
    """
    core, file = openvino_core(), bundle.manifest.graphs[graph]
    if not file.endswith(".onnx"):  # by which OpenVINO chooses among its readers
        raise ValueError(f"{file} is no .onnx file")
    model = core.read_model(bundle.root / file)
    if any(port.get_element_type().to_string() == "f64" for op in model.get_ops() for port in op.outputs()):
        return _onnx_runtime(bundle, graph, threads)
    component, precision = bundle.manifest.component(graph), _split(bundle.manifest.target)[1]
    options = {"INFERENCE_PRECISION_HINT": computes(precision) if component else "f32"}
    options |= {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    options |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}  # the graph says which activations have few bits
    options |= {} if _in_bytes(bundle, graph) else {"LP_TRANSFORMS_MODE": "NO"}
    options |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
    options |= {"SNIPPETS_MODE": "DISABLE"} if _overwrites_queries(model) else {}
    compiled = core.compile_model(model, "CPU", options)
    idle: list[Any] = []  # requests hold the memory of what a graph computes, so they are used again

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        found = request.infer(dict(feeds))
        outputs = [found[at] for at in range(len(compiled.outputs))]
        idle.append(request)
        return outputs

    return Session([frozenset(port.get_names()) for port in compiled.inputs], len(compiled.outputs), run, "OpenVINO")


def _overwrites_queries(model: Any) -> bool:
    """Say whether OpenVINO's fused attention would write over queries that it has yet to read.

    It writes to the queries' memory where its result has their shape, but may transpose heads and tokens on the way:
    with as many queries as heads, the shape does not tell. Seen in 2026.4.1; it computes right when it does not fuse.
    """
    attention = ("ScaledDotProductAttention", "Softmax")
    shapes = [op.get_input_partial_shape(0) for op in model.get_ordered_ops() if op.get_type_name() in attention]
    sizes = [shape.to_shape() for shape in shapes if shape.is_static]
    return any(len(size) > 2 and size[-3] == size[-2] > 1 for size in sizes)


def computes(precision: str) -> str:
    """Say what OpenVINO computes in on this CPU, for a precision that `check_engine` knows."""
    able = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    wanted = COMPUTES[precision]
    return wanted if wanted.upper() in able else "f32"


@cache
def openvino_core() -> Any:
    """Give OpenVINO's one core, which keeps its silence. Raises `BundleError` where OpenVINO is not installed.

    Importing it would tell an analytics service so. It does without the package that does that where there is none.
    """
    there = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = cast(ModuleType, None)  # which is how Python is told that a module cannot be imported
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


@dataclass(frozen=True)
class Machine:
    """Find what an engine of TensorRT needs. Each function raises `BundleError` where it is missing."""

    gpu: Callable[[], Gpu] = find_gpu
    library: Callable[[str], Library] = find_library
    cuda: Callable[[Gpu], Any] = find_cuda


PLANS: weakref.WeakValueDictionary[tuple[object, ...], Plan] = weakref.WeakValueDictionary()
"""The engines that are open in this process: graphs that differ in shapes alone share one, with its weights."""


def open_tensorrt(bundle: Bundle, graph: str, threads: int, machine: Machine = Machine()) -> Session:
    """Run a graph's engine on the GPU, or the graph in ONNX Runtime where this machine cannot run the engine.

    Arithmetic between components has no engine, nor has what computes in float64. Raises `BundleError` where the engine
    is damaged or does not get its weights, or where ONNX Runtime cannot compute on the CPU what the graph says.
    """
    if not bundle.manifest.component(graph) or (bundle.manifest.engines and graph not in bundle.manifest.engines):
        return _onnx_runtime(bundle, graph, threads)
    try:
        gpu, library, cuda = _needed(bundle, graph, machine)
    except BundleError as missing:
        where = bundle.manifest.graphs[graph]
        try:
            session = _onnx_runtime(bundle, graph, threads)
        except Exception as error:
            what = f"{missing.what}, and ONNX Runtime cannot compute {where} on the CPU: {reason(error)}"
            raise BundleError(what, where=where, fix=missing.fix) from error
        _warn_once(f"{bundle.path} is drawn by ONNX Runtime, on the CPU: {missing.what}\n  fix: {missing.fix}")
        return session
    return _executed(bundle, graph, gpu, library, cuda)


def _needed(bundle: Bundle, graph: str, machine: Machine) -> tuple[Gpu, Library, Any]:
    """Give the GPU, the library and CUDA. Raises `BundleError` with what is missing, and the command that mends it."""
    finalize, engine = f"diffc finalize {bundle.path}", bundle.manifest.engines.get(graph)
    try:
        gpu = machine.gpu()
    except BundleError as error:
        fix = f"run it where a GPU is, or: diffc build … --target ort-{_split(bundle.manifest.target)[1]}"
        raise BundleError(error.what, fix=fix) from error
    if engine is None:
        raise BundleError("the bundle holds no engines", fix=finalize)
    if gpu.arch not in engine.archs:
        raise BundleError(f"the engines are for {', '.join(engine.archs)}, and {gpu.name} is {gpu.arch}", fix=finalize)
    library = machine.library(engine.builder.partition(" ")[0])
    if str(library) != engine.builder:
        raise BundleError(f"the engines were built by {engine.builder}, and here is {library}", fix=finalize)
    return gpu, library, machine.cuda(gpu)


def _executed(bundle: Bundle, graph: str, gpu: Gpu, library: Library, cuda: Any) -> Session:
    file = bundle.manifest.engines[graph].file
    key = (*_made_of(bundle, graph), library, gpu)
    called = next(program.graphs[graph] for program in bundle.programs.values() if graph in program.graphs)
    shapes = {port.name: port.type.shape for port in called.inputs}
    try:
        plan = PLANS.get(key) or PLANS.setdefault(key, _read(bundle, graph, library))
        name = hashlib.sha256(" ".join(map(str, (*key, shapes))).encode()).hexdigest()
        execution = Execution(plan, Device(cuda), shapes, Cache.default(), name)
    except ValueError as error:
        what = f"{library} refuses {file}: {reason(error)}"
        raise BundleError(what, where=file, fix=f"diffc finalize {bundle.path}") from error
    except RuntimeError as error:
        fix = "free the GPU's memory, and look at nvidia-smi"
        raise BundleError(f"{gpu.name} cannot run {file}: {error}", where=file, fix=fix) from error
    order = output_names(bundle.graph(graph))

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        found = execution.run(feeds)
        return [found[name] for name in order]

    return Session([frozenset({name}) for name in execution.inputs], len(order), run, f"{library} on {gpu.name}")


def _made_of(bundle: Bundle, graph: str) -> list[str]:
    """Give the digests of a graph's engine and of the weights that it takes: those of two models may share a plan."""
    engine, files = bundle.manifest.engines[graph], [bundle.manifest.engines[graph].file]
    if engine.stripped:
        files += [bundle.manifest.graphs[graph], *sorted(external_files(bundle.graph(graph)))]
    return [bundle.manifest.files[file].sha256 for file in files]


def _read(bundle: Bundle, graph: str, library: Library) -> Plan:
    """Put a graph's engine on the GPU, and its weights into it where it has none."""
    engine = bundle.manifest.engines[graph]
    file = bundle.root / engine.file
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        plan = Plan(library, content)
    if engine.stripped:
        plan.refit(bundle.root / bundle.manifest.graphs[graph])
    return plan


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, DiffcWarning, stacklevel=2)


ENGINES: dict[str, Engine] = {
    "onnx": _onnx_runtime,
    "ort": _onnx_runtime,
    "ov": _openvino,
    "trt": open_tensorrt,
    "torchtrt": open_tensorrt,
}


def open_graph(bundle: Bundle, graph: str, threads: int) -> Session:
    """Open a graph with the engine of the bundle's target. Raises `BundleError` where it cannot."""
    where = bundle.manifest.graphs[graph]
    backend = check_engine(bundle.manifest.target)
    try:
        return ENGINES[backend](bundle, graph, threads)
    except BundleError:
        raise
    except Exception as error:  # the errors of engines have no class in common
        raise BundleError(f"{where} cannot be loaded: {reason(error)}", where=where, fix="build it again") from error


def check_engine(target: str) -> str:
    """Give the backend whose engine runs a target. Raises `BundleError` where there is none, or it is not installed."""
    backend, precision = _split(target)
    if backend not in ENGINES or (backend == "ov" and precision not in COMPUTES):
        known = ", ".join(sorted(ENGINES))
        fix = f"upgrade diffc, or build for one of {known}"
        raise BundleError(f"no engine of this diffc runs {target[:40]!r}", where="manifest.json", fix=fix)
    if backend == "ov":
        openvino_core()
    return backend


def reason(error: Exception) -> str:
    """Give the line of an engine's error that says something: the first, or the last where a place in code is first."""
    lines = [line.strip("- ") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0].startswith("Exception from") else 0][:300]


def recommended() -> str:
    """Name the backend whose engine is the faster one on this CPU, be it installed or not."""
    return "ov" if platform.machine() in X86 and _cpu_flags() >= {WIDE} else "ort"


@cache
def multiplies_bytes() -> bool:
    """Say whether engines multiply 8-bit integers exactly on this CPU, however large they are.

    Without VNNI, ONNX Runtime and oneDNN sum two products of bytes in 16 bits on x86, and cut large sums off.
    """
    return platform.machine() not in X86 or bool(_cpu_flags() & VNNI)


def _in_bytes(bundle: Bundle, graph: str) -> bool:
    """Let a graph be computed in bytes where that is exact; elsewhere it is in float, on the same rounded numbers."""
    return multiplies_bytes() or bundle.manifest.has_reduced_range(graph)


def advice(target: str, size: int) -> str | None:
    """Say in a line that this CPU has a faster engine for a bundle of so many bytes; None where it has not."""
    if not target.startswith("ort-") or size < LARGE or recommended() != "ov":
        return None
    install = "" if openvino_version() else f" ({INSTALL})"
    return f"this CPU is faster with OpenVINO: build for ov-{target.removeprefix('ort-')}{install}"


def openvino_version() -> str | None:
    """Say which OpenVINO is installed, without importing it."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _split(target: str) -> tuple[str, str]:
    backend, _, precision = target.partition("@")[0].partition("-")
    return backend, precision
