"""Find and load TensorRT, and run its engines: the one place that knows where its libraries lie.

There are two with one API. TensorRT for RTX builds engines without a GPU, for several architectures, and finishes them
on the machine that runs them; the classic TensorRT builds for the GPU that is there. A package of bindings and one of
libraries make up the former where NVIDIA's own, which needs its own index, is not installed.

Sources: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library (its pages on porting, the runtime
API, CUDA graphs and the runtime cache) and https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, files, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffc.runtime.disk_cache import Cache
from diffc.runtime.engines.cuda import Device
from diffc.runtime.errors import BundleError

Array = NDArray[Any]

RTX, CLASSIC = "tensorrt-rtx", "tensorrt"

INSTALL = {RTX: "pip install 'diffc[tensorrt]'", CLASSIC: "pip install tensorrt cuda-bindings"}
"""The packages that install each kind, its builder and its runtime."""

MODULES = {RTX: "tensorrt_rtx", CLASSIC: "tensorrt"}

BINDINGS, LIBRARIES = "tensorrt-rtx-cu13-bindings", "onnxruntime-ep-nv-tensorrt-rtx-cu13"
SHARED = ("libtensorrt_rtx", "libtensorrt_onnxparser_rtx")


@dataclass(frozen=True)
class Library:
    """Hold the imported bindings, which of the two kinds they are of, and their version; ``str`` names both.

    >>> str(Library(None, "tensorrt-rtx", "1.7.1.116"))
    'tensorrt-rtx 1.7.1.116'
    """

    module: Any
    kind: str
    version: str

    def __str__(self) -> str:
        return f"{self.kind} {self.version}"


@cache
def find_library(kind: str | None = None) -> Library:
    """Load TensorRT: the requested kind, or else the first of the two that is installed.

    Raises `BundleError` with the command that installs it.
    """
    library_kind = kind or next(iter(installed()), RTX)
    try:
        module = _import(library_kind)
    except (ImportError, OSError) as error:
        name = "TensorRT for RTX" if library_kind == RTX else "TensorRT"
        raise BundleError(f"{name} cannot be loaded: {error}", fix=INSTALL[library_kind]) from error
    return Library(module, library_kind, str(module.__version__))


@cache
def installed() -> dict[str, str]:
    """Map the kinds that are installed to their versions, without importing any."""
    versions = dict[str, str]()
    for kind, packages in ((RTX, ("tensorrt-rtx", BINDINGS)), (CLASSIC, ("tensorrt",))):
        for package in packages:
            try:
                versions.setdefault(kind, version(package))
            except PackageNotFoundError:
                continue
    return versions


def architectures(library: Library) -> list[str]:
    """List the GPUs that a library builds for when they are named, as ``sm86``: none for the classic one."""
    named = getattr(library.module, "ComputeCapability", None)
    return [name.lower() for name in named.__members__ if name.startswith("SM")] if named else []


def _import(kind: str) -> Any:
    if kind == CLASSIC or find_spec(MODULES[RTX]):
        return import_module(MODULES[kind])
    libraries = _libraries()
    for path in libraries:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    module = import_module("tensorrt_rtx_bindings")
    has = libraries[0].name.partition(".so.")[2]
    if not f"{module.__version__}.".startswith(f"{has}."):
        raise ImportError(f"{BINDINGS} {module.__version__} does not go with {LIBRARIES}, which holds {has}")
    return module


def _libraries() -> list[Path]:
    """Find the library in its package, and then its parser of ONNX."""
    try:
        held = {file.name.partition(".so.")[0]: Path(str(file.locate())) for file in files(LIBRARIES) or ()}
        return [held[name] for name in SHARED]
    except (PackageNotFoundError, KeyError) as error:
        raise ImportError(f"{LIBRARIES} is not installed, or does not hold {' and '.join(SHARED)}") from error


@dataclass(frozen=True)
class _Port:
    """Describe an input or output of an engine: its address on the GPU, shape and type."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Plan:
    """Hold an engine on the GPU, for any number of executions; ``content`` is not read any more afterwards.

    Raises `ValueError` with the library's complaint where it refuses the engine: one that is damaged, or of another
    version, or larger than the GPU's memory.
    """

    def __init__(self, library: Library, content: Any) -> None:
        self.library = library
        self._log, self.complaints = _log(library.module)
        self.complaints.clear()
        self._runtime = library.module.Runtime(self._log)  # the engine needs it
        self.engine = self._runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise ValueError(self.complaint or f"{library} refuses it")

    @property
    def complaint(self) -> str:
        """Return the first error message of the library."""
        return self.complaints[0] if self.complaints else ""

    def refit(self, graph: Path) -> None:
        """Load the weights of an engine that holds none from the ONNX file that it was built from, and those beside it.

        Until then it computes with zeros. Raises `ValueError` where weights are missing, or the library refuses them.
        """
        if not self.engine.refittable:
            raise ValueError("it was built with its weights, and takes no others")
        self.complaints.clear()
        refitter = self.library.module.Refitter(self.engine, self._log)
        parser = self.library.module.OnnxParserRefitter(refitter, self._log)
        is_read = parser.refit_from_file(str(graph))
        message = parser.get_error(0).desc() if parser.num_errors else ""
        if missing := refitter.get_missing_weights():
            lacks = f"{graph.name} lacks {len(missing)} of its {len(refitter.get_all_weights())} weights"
            raise ValueError(f"{lacks}, {missing[0] or 'one without a name'} first{message and f': {message}'}")
        if not is_read or not refitter.refit_cuda_engine():
            raise ValueError(message or self.complaint or f"{self.library} does not take the weights of {graph.name}")


class Execution:
    """Run an engine, one call after another, with buffers that lie on the GPU as long as it lives.

    The classic library's launches are recorded after the first call, and put into the stream at once from then on;
    TensorRT for RTX records by itself on request. Its code for this very GPU, compiled when it opens an engine, is
    kept in ``cache`` as ``key``, for the next time. An engine may take several ``shapes`` of its inputs; an execution
    takes these. Raises `ValueError` where the library cannot execute it.
    """

    def __init__(
        self, plan: Plan, device: Device, shapes: Mapping[str, tuple[int, ...]], cache: Cache, key: str
    ) -> None:
        library, engine, trt = plan.library, plan.engine, plan.library.module
        self._device, self._plan = device, plan
        weakref.finalize(self, device.close)
        plan.complaints.clear()
        self._afterwards: Callable[[], None] | None
        if library.kind == RTX:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            # shapes never change here: compile for them before the first call, which ``cache`` then has all of
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            self._afterwards = _keep_compiled(config, cache, key)
            self._context = engine.create_execution_context(config)
        else:
            self._afterwards = lambda: device.capture(self._launch)
            self._context = engine.create_execution_context()
        if self._context is None:
            raise ValueError(plan.complaint or f"{library} cannot execute it")
        names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if engine.num_optimization_profiles > 1:
            self._context.set_optimization_profile_async(_profile(engine, self.inputs, shapes), device.stream)
        for name in self.inputs:
            if not self._context.set_input_shape(name, shapes[name]):
                raise ValueError(plan.complaint or f"{name} cannot be {list(shapes[name])}")
        self._ports = {name: self._port(name) for name in names}
        self._lock = threading.Lock()

    def _port(self, name: str) -> _Port:
        trt, shape = self._plan.library.module, tuple(self._context.get_tensor_shape(name))
        dtype = np.dtype(trt.nptype(self._plan.engine.get_tensor_dtype(name)))
        port = _Port(self._device.allocate(math.prod(shape) * dtype.itemsize), shape, dtype)
        self._context.set_tensor_address(name, port.address)
        return port

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name. Raises `ValueError` for other shapes than the engine's, or `RuntimeError`."""
        with self._lock:
            sent = {name: self._taken(name, feeds[name]) for name in self.inputs}  # alive until they have arrived
            for name, array in sent.items():
                self._device.write(self._ports[name].address, array)
            if not self._device.replay():
                self._launch()
            outputs = {
                name: self._device.read(port.address, port.shape, port.dtype)
                for name, port in self._ports.items()
                if name not in self.inputs
            }
            self._device.finish()
            afterwards, self._afterwards = self._afterwards, None
            if afterwards is not None:
                with suppress(RuntimeError):  # an engine whose launches cannot be recorded is launched each time
                    afterwards()
            return outputs

    def _taken(self, name: str, array: Array) -> Array:
        """Return an array in the engine's type and layout. Raises `ValueError` where its buffer has another size."""
        port = self._ports[name]
        if array.shape != port.shape:
            raise ValueError(f"{name} is {list(array.shape)}, not {list(port.shape)}")
        return np.ascontiguousarray(array, port.dtype)

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self._device.stream):
            raise RuntimeError("TensorRT could not launch the engine")


def _profile(engine: Any, inputs: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Find the range of shapes that inputs are in, of those that an engine was built for; 0 where they are in none."""

    def holds(at: int) -> bool:
        ends = ((shapes[name], engine.get_tensor_profile_shape(name, at)) for name in inputs)
        return all(
            low <= size <= high
            for shape, (least, _, most) in ends
            for low, size, high in zip(least, shape, most, strict=True)
        )

    return next(filter(holds, range(engine.num_optimization_profiles)), 0)


def _keep_compiled(config: Any, cache: Cache, key: str) -> Callable[[], None] | None:
    """Load cached kernels into a context; where there are none for this driver, return a function that stores them."""
    compiled, cached = config.create_runtime_cache(), cache.get(key)
    taken = cached is not None and compiled.deserialize(cached)
    config.set_runtime_cache(compiled)
    return None if taken else lambda: cache.put(key, bytes(compiled.serialize()))


@cache
def _log(trt: Any) -> tuple[Any, deque[str]]:
    """Return the logger of a library in this process, and the errors that it collects, the oldest first."""
    complaints = deque[str](maxlen=16)

    def log(self: Any, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            complaints.append(message)

    return type("Log", (trt.ILogger,), {"log": log})(), complaints
