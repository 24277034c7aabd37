"""Ask drivers for GPUs, those that are there and those that are not, and let CUDA's runtime say why it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffc.runtime import BundleError
from diffc.runtime.engines.cuda import Device, Gpu, find_cuda, find_gpu, gpu_of
from tests.runtime.fake_gpu import FakeCuda

NEW = Gpu("NVIDIA GeForce RTX 5090", "sm120", "99.0")


class Driver:
    """Show one GPU, or fail in one call."""

    def __init__(self, capability: tuple[int, int] = (8, 9), **errors: int) -> None:
        self.capability, self.errors = dict(zip((75, 76), capability, strict=True)), errors

    def cuInit(self, flags: int) -> int:
        return self.errors.get("cuInit", 0)

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return self.errors.get("cuDeviceGet", 0)

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"NVIDIA GeForce RTX 4090"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = self.capability[attribute]
        return 0


@pytest.mark.parametrize(("capability", "arch"), [((8, 9), "sm89"), ((9, 0), "sm90"), ((12, 0), "sm120")])
def test_a_gpu_has_a_name_an_architecture_and_a_driver(capability: tuple[int, int], arch: str) -> None:
    gpu = gpu_of(Driver(capability))
    assert (gpu.name, gpu.arch, gpu.cuda) == ("NVIDIA GeForce RTX 4090", arch, "13.2")


@pytest.mark.parametrize(("call", "error"), [("cuInit", 100), ("cuDeviceGet", 101)])
def test_a_driver_without_a_gpu_is_an_error(call: str, error: int) -> None:
    with pytest.raises(BundleError, match=f"shows no GPU: {call} gave error {error}") as raised:
        gpu_of(Driver(**{call: error}))
    assert "CUDA_VISIBLE_DEVICES" in str(raised.value.fix)


def test_this_machine_has_a_gpu_or_says_why_not() -> None:
    try:
        assert find_gpu().arch.startswith("sm")
    except BundleError as error:
        assert "no NVIDIA driver" in error.what or "shows no GPU" in error.what


def has_gpu() -> bool:
    try:
        find_gpu()
    except BundleError:
        return False
    return True


def test_cuda_says_which_call_it_refuses() -> None:
    """The bindings take the arguments of every call, and give the error of a machine without a driver."""
    pytest.importorskip("cuda.bindings")
    if has_gpu():
        pytest.skip("CUDA refuses nothing where there is a GPU")
    runtime = find_cuda(NEW)
    with pytest.raises(RuntimeError, match="cudaStreamCreateWithFlags gave cudaError"):
        Device(runtime)
    device = Device(Created(runtime))
    numbers = np.zeros((2, 3), np.float32)
    for call in (
        lambda: device.allocate(8),
        lambda: device.write(1 << 20, numbers),
        lambda: device.read(1 << 20, numbers.shape, numbers.dtype),
        device.finish,
        lambda: device.capture(lambda: None),
    ):
        with pytest.raises(RuntimeError, match=r"cuda\w+ gave cudaError"):
            call()
    device.close()


def test_a_driver_that_is_too_old_is_refused() -> None:
    pytest.importorskip("cuda.bindings")
    with pytest.raises(BundleError, match=r"the driver of .* is for CUDA 9.2, and CUDA \d+ is installed") as raised:
        find_cuda(replace(NEW, cuda="9.2"))
    assert raised.value.fix == "update NVIDIA's driver"


class Created:
    """Give a stream that does not exist, and for the rest be CUDA's runtime."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self.runtime.cudaError_t.cudaSuccess, self.runtime.cudaStream_t(0)


def test_a_closed_device_has_given_everything_back() -> None:
    cuda = FakeCuda()
    device = Device(cuda)
    addresses = [device.allocate(size) for size in (0, 8, 24)]
    numbers = np.arange(3, dtype=np.int64)
    device.write(addresses[2], numbers)
    np.testing.assert_array_equal(device.read(addresses[2], (3,), numbers.dtype), numbers)
    device.close()
    assert cuda.memory == {} and cuda.calls["cudaStreamDestroy"] == 1
