"""Find the GPU, and hold memory, a stream and a graph of launches on it, by the calls of NVIDIA's own bindings.

Sources: https://docs.nvidia.com/cuda/cuda-driver-api and https://nvidia.github.io/cuda-python/cuda-bindings
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffc.runtime.errors import BundleError

DRIVER = "libcuda.so.1"
CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@dataclass(frozen=True)
class Gpu:
    """Name the first GPU that the driver shows, its architecture (``sm89``), and the CUDA that the driver knows."""

    name: str
    arch: str
    cuda: str


@cache
def find_gpu() -> Gpu:
    """Return the GPU of this machine. Raises `BundleError` where it has none, or no driver."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise BundleError("no NVIDIA driver is installed", where=DRIVER, fix="install the driver of the GPU") from error
    return gpu_of(driver)


def gpu_of(driver: Any) -> Gpu:
    """Return the first GPU of a driver. Raises `BundleError` where it shows none."""

    def call(name: str, *args: Any) -> None:
        if error := getattr(driver, name)(*args):
            what = f"the NVIDIA driver shows no GPU: {name} gave error {error}"
            raise BundleError(what, where=DRIVER, fix="look at nvidia-smi, and at CUDA_VISIBLE_DEVICES")

    call("cuInit", 0)
    device, version, numbers = ctypes.c_int(), ctypes.c_int(), [ctypes.c_int() for _ in CAPABILITY]
    name = ctypes.create_string_buffer(256)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDeviceGetName", name, len(name), device)
    call("cuDriverGetVersion", ctypes.byref(version))
    for number, attribute in zip(numbers, CAPABILITY, strict=True):
        call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
    major, minor = (number.value for number in numbers)
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode("utf-8", "replace"), f"sm{major}{minor}", cuda)


def find_cuda(gpu: Gpu) -> Any:
    """Import CUDA's runtime. Raises `BundleError` where it is not installed, or is of a later CUDA than the driver."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        fix = "pip install cuda-bindings"
        raise BundleError(f"the bindings of CUDA cannot be imported: {error}", fix=fix) from error
    _, version = runtime.cudaRuntimeGetVersion()
    if int(gpu.cuda.partition(".")[0]) < version // 1000:
        what = f"the driver of {gpu.name} is for CUDA {gpu.cuda}, and CUDA {version // 1000} is installed"
        raise BundleError(what, where=DRIVER, fix="update NVIDIA's driver")
    return runtime


class Device:
    """Hold memory, a stream and at most one graph of launches, until it is closed.

    ``cuda`` is the module that `find_cuda` returns. Raises `RuntimeError` with CUDA's reason.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._memory: list[int] = []
        self._graph: Any = None
        self._stream = self._call("cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)

    @property
    def stream(self) -> int:
        """Return the address of the stream."""
        return int(self._stream)

    def allocate(self, size: int) -> int:
        """Allocate bytes on the GPU and return their address."""
        address = int(self._call("cudaMalloc", max(size, 1)))
        self._memory.append(address)
        return address

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array in C order to the GPU, after the stream's earlier work."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def read(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Copy an array from the GPU, after the stream's earlier work; it is complete once the stream is."""
        array = np.empty(shape, dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)
        return array

    def finish(self) -> None:
        """Wait until the stream is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, launch: Callable[[], None]) -> None:
        """Record the work that ``launch`` puts into the stream, without running it, for `replay`."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            launch()
        finally:
            recorded = self._call("cudaStreamEndCapture", self._stream)
        self._graph = self._call("cudaGraphInstantiate", recorded, 0)
        self._call("cudaGraphDestroy", recorded)

    def replay(self) -> bool:
        """Put the recorded work into the stream; return False where there is none."""
        if self._graph is not None:
            self._call("cudaGraphLaunch", self._graph, self._stream)
        return self._graph is not None

    def close(self) -> None:
        """Free all memory; a driver that has ended meanwhile has done so."""
        if self._graph is not None:
            self._cuda.cudaGraphExecDestroy(self._graph)
        for address in self._memory:
            self._cuda.cudaFree(address)
        self._cuda.cudaStreamDestroy(self._stream)

    def _call(self, name: str, *args: Any) -> Any:
        error, *results = getattr(self._cuda, name)(*args)
        if error:
            raise RuntimeError(f"{name} gave {error.name}")
        return results[0] if results else None
