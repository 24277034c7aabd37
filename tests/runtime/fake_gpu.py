"""Stand in for a GPU: CUDA's runtime over host memory, and a TensorRT whose plans are JSON."""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from diffc.runtime.engines.cuda import Gpu
from diffc.runtime.engines.tensorrt import Machine
from diffc.runtime.engines.tensorrt_library import Library

FIRST = 1 << 48  # no address of the host


class Error(IntEnum):
    """What a call of CUDA says."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureInvalidated = 901


class FakeCuda:
    """Do at once what a stream is told, unless it is being recorded."""

    cudaStreamNonBlocking = 1

    class cudaMemcpyKind:
        cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost = 1, 2

    class cudaStreamCaptureMode:
        cudaStreamCaptureModeThreadLocal = 1

    def __init__(self, *, room: int = 1 << 20, records: bool = True) -> None:
        self.memory: dict[int, bytearray] = {}
        self.calls = Counter[str]()
        self.room, self.records = room, records
        self.recorded: list[Callable[[], None]] | None = None

    def tell(self, work: Callable[[], None]) -> None:
        """Put work into the stream."""
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return Error.cudaSuccess, 7

    def cudaStreamSynchronize(self, stream: int) -> Any:
        return (Error.cudaSuccess,)

    def cudaStreamDestroy(self, stream: int) -> Any:
        self.calls["cudaStreamDestroy"] += 1
        return (Error.cudaSuccess,)

    def cudaMalloc(self, size: int) -> Any:
        if sum(map(len, self.memory.values())) + size > self.room:
            return Error.cudaErrorMemoryAllocation, None
        self.calls["cudaMalloc"] += 1
        address = FIRST + (self.calls["cudaMalloc"] << 32)
        self.memory[address] = bytearray(size)
        return Error.cudaSuccess, address

    def cudaFree(self, address: int) -> Any:
        del self.memory[address]
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> Any:
        assert stream == 7 and self.recorded is None
        if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice:
            assert len(self.memory[to]) >= size
            self.memory[to][:size] = ctypes.string_at(source, size)
        else:
            ctypes.memmove(to, bytes(self.memory[source][:size]), size)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:
        self.recorded = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        recorded, self.recorded = self.recorded, None
        return (Error.cudaSuccess, recorded) if self.records else (Error.cudaErrorStreamCaptureInvalidated, None)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        self.calls["cudaGraphInstantiate"] += 1
        return Error.cudaSuccess, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> Any:
        graph.clear()
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> Any:
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> Any:
        self.calls["cudaGraphLaunch"] += 1
        for work in graph:
            work()
        return (Error.cudaSuccess,)


def plan(
    shape: list[int],
    *,
    dtype: str = "float32",
    outputs: tuple[str, ...] = ("image",),
    lacks: tuple[str, ...] = (),
    ranges: list[tuple[list[int], list[int]]] | None = None,
) -> bytes:
    """Write an engine that gives, for its input z, sigmoid(z), and 1 more for each output after the first.

    A size of -1 is left open: it may be what it is in ``ranges``, or else anything up to 4. One that ``lacks`` weights
    multiplies sigmoid(z) by them.
    """
    ends = [(abs(size), 4 if size == -1 else size) for size in shape]
    promised = ranges or [tuple(zip(*ends, strict=True))]
    told = {"shape": shape, "dtype": dtype, "outputs": outputs, "lacks": lacks, "ranges": promised}
    return json.dumps(told).encode()


class FakeEngine:
    """What a plan becomes; it lists its outputs from the last to the first."""

    def __init__(self, trt: FakeTensorRT, told: dict[str, Any]) -> None:
        self.trt, self.told = trt, told
        self.names = ["z", *reversed(told["outputs"])]
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(told["ranges"])
        self.refittable = bool(told["lacks"])
        told["factor"] = 0.0 if told["lacks"] else 1.0  # an engine computes with zeros until it has its weights

    def get_tensor_name(self, at: int) -> str:
        return self.names[at]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "z" else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return str(self.told["dtype"])

    def get_tensor_profile_shape(self, name: str, at: int) -> list[list[int]]:
        least, most = self.told["ranges"][at]
        return [least, most, most]

    def create_execution_context(self, config: FakeConfig | None = None) -> FakeContext:
        assert config is None or (config.cuda_graph_strategy, config.dynamic_shapes_kernel_specialization_strategy) == (
            "whole",
            "eager",
        )
        self.trt.compiled += config is None or config.cache != b"compiled"
        return FakeContext(self.trt, self.told)

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig()


class FakeConfig:
    """What TensorRT for RTX has besides: a configuration, and a cache of what it compiled."""

    def __init__(self) -> None:
        self.cuda_graph_strategy = self.dynamic_shapes_kernel_specialization_strategy = ""
        self.cache: bytes | None = None

    def create_runtime_cache(self) -> FakeConfig:
        return self

    def set_runtime_cache(self, cache: FakeConfig) -> bool:
        return cache is self

    def serialize(self) -> memoryview:
        return memoryview(b"compiled")

    def deserialize(self, blob: bytes) -> bool:
        self.cache = blob
        return blob == b"compiled"


class FakeContext:
    """Execute a plan for the shape that is set."""

    def __init__(self, trt: FakeTensorRT, told: dict[str, Any]) -> None:
        self.trt, self.told, self.shape = trt, told, tuple(told["shape"])
        self.addresses: dict[str, int] = {}
        self.range = told["ranges"][0]

    def set_optimization_profile_async(self, at: int, stream: int) -> bool:
        assert stream == 7
        self.range = self.told["ranges"][at]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        taken = len(shape) == len(self.shape) and all(
            least <= size <= most for size, least, most in zip(shape, *self.range, strict=True)
        )
        self.shape = tuple(shape) if taken else self.shape
        return taken

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        self.trt.cuda.tell(self._compute)
        return True

    def _compute(self) -> None:
        self.trt.computed += 1
        memory, dtype = self.trt.cuda.memory, self.told["dtype"]
        z = np.frombuffer(bytes(memory[self.addresses["z"]]), dtype).astype(np.float64)
        for at, name in enumerate(self.told["outputs"]):
            memory[self.addresses[name]][:] = (at + self.told["factor"] / (1 + np.exp(-z))).astype(dtype).tobytes()


class FakeRefitter:
    """Collect the weights of an engine that lacks some, and put them into it; one of -1 is refused."""

    def __init__(self, trt: FakeTensorRT, engine: FakeEngine) -> None:
        self.trt, self.engine, self.given = trt, engine, dict[str, np.ndarray]()

    def get_all_weights(self) -> list[str]:
        return list(self.engine.told["lacks"])

    def get_missing_weights(self) -> list[str]:
        return [name for name in self.get_all_weights() if name not in self.given]

    def refit_cuda_engine(self) -> bool:
        assert not self.get_missing_weights()
        factor = float(np.prod([array.prod() for array in self.given.values()]))
        if factor == -1:
            self.trt.log.log(self.trt.ILogger.ERROR, "out of memory")
            return False
        self.engine.told["factor"] = factor
        return True


class FakeOnnxParserRefitter:
    """Read the weights of an ONNX file, and those that lie beside it."""

    def __init__(self, refitter: FakeRefitter) -> None:
        self.refitter, self.errors = refitter, list[str]()

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, at: int) -> SimpleNamespace:
        return SimpleNamespace(desc=lambda: self.errors[at])

    def refit_from_file(self, path: str) -> bool:
        self.refitter.trt.refitted.append(path)
        held = {tensor.name: tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer}
        known = self.refitter.get_all_weights()
        for name in known:
            if name in held:
                self.refitter.given[name] = numpy_helper.to_array(held[name], str(Path(path).parent))
        if missing := self.refitter.get_missing_weights():
            self.errors.append(f"refitted {len(known) - len(missing)} weights out of {len(known)}")
        return not self.errors


class FakeTensorRT:
    """The module: it computes in the memory of a `FakeCuda`.

    It counts how often it compiled and computed, and lists the files that weights were read from.
    """

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    class TensorIOMode:
        INPUT, OUTPUT = "input", "output"

    class CudaGraphStrategy:
        WHOLE_GRAPH_CAPTURE = "whole"

    class DynamicShapesKernelSpecializationStrategy:
        EAGER = "eager"

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.compiled, self.computed = cuda, 0, 0
        self.refitted = list[str]()

    def nptype(self, dtype: str) -> str:
        return dtype

    def Runtime(self, log: Any) -> FakeTensorRT:
        self.log = log
        return self

    def Refitter(self, engine: FakeEngine, log: Any) -> FakeRefitter:
        assert log is self.log
        return FakeRefitter(self, engine)

    def OnnxParserRefitter(self, refitter: FakeRefitter, log: Any) -> FakeOnnxParserRefitter:
        assert log is self.log
        return FakeOnnxParserRefitter(refitter)

    def deserialize_cuda_engine(self, buffer: Any) -> FakeEngine | None:
        try:
            return FakeEngine(self, json.loads(bytes(buffer)))
        except ValueError:
            self.log.log(self.ILogger.WARNING, "a warning")
            self.log.log(self.ILogger.ERROR, "the magic tag is wrong")
            self.log.log(self.ILogger.ERROR, "and so on")
            return None


def machine(kind: str = "tensorrt-rtx", version: str = "1.7.1.116", **cuda: Any) -> tuple[Machine, FakeCuda, Any]:
    """Give a machine with a GPU, its CUDA and its TensorRT."""
    runtime = FakeCuda(**cuda)
    library = Library(FakeTensorRT(runtime), kind, version)
    gpu = Gpu("NVIDIA GeForce RTX 4090", "sm89", "13.0")
    return Machine(lambda: gpu, lambda _: library, lambda _: runtime), runtime, library.module
