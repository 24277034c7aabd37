"""Load TensorRT, and run engines of a stand-in for it: buffers, graphs of launches, and what is kept of compiling."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from diffc.runtime import BundleError
from diffc.runtime.disk_cache import Cache
from diffc.runtime.engines import tensorrt_library
from diffc.runtime.engines.cuda import Device
from diffc.runtime.engines.tensorrt_library import (
    CLASSIC,
    INSTALL,
    RTX,
    Execution,
    Library,
    Plan,
    architectures,
    find_library,
    installed,
)
from tests.runtime.fake_gpu import FakeCuda, FakeOnnxParserRefitter, FakeTensorRT, plan
from tests.tolerances import PICTURE_OF_NUMPY

KEY = "0" * 64
needs_rtx = pytest.mark.skipif(RTX not in installed(), reason=f"TensorRT for RTX is not installed: {INSTALL[RTX]}")


# The library


@needs_rtx
def test_the_library_is_found_and_says_its_version() -> None:
    library = find_library(RTX)
    assert str(library) == f"tensorrt-rtx {installed()[RTX]}"
    assert library.module.Builder and library.module.OnnxParser
    assert find_library(RTX) is library and find_library().kind in (RTX, CLASSIC)


@needs_rtx
def test_bindings_of_another_version_than_the_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tensorrt_library._libraries()
    monkeypatch.setattr(tensorrt_library, "_libraries", lambda: [Odd(found[0]), found[1]])
    with pytest.raises(ImportError, match=r"does not go with onnxruntime-ep-nv-tensorrt-rtx-cu13, which holds 1\.0\.9"):
        tensorrt_library._import(RTX)


class Odd:
    """Be a file whose name has another version."""

    name = "libtensorrt_rtx.so.1.0.9"

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)


@pytest.mark.skipif(CLASSIC in installed(), reason="the classic TensorRT is installed")
def test_a_missing_library_is_named_with_the_command() -> None:
    with pytest.raises(BundleError, match="TensorRT cannot be loaded: No module named 'tensorrt'") as raised:
        find_library(CLASSIC)
    assert raised.value.fix == "pip install tensorrt cuda-bindings"


def test_a_package_without_the_library_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "files", lambda _: [])
    with pytest.raises(ImportError, match="onnxruntime-ep-nv-tensorrt-rtx-cu13 is not installed, or does not hold"):
        tensorrt_library._libraries()


@needs_rtx
@pytest.mark.parametrize("broken", [b"x", b"x" * 100, bytes(1000)], ids=len)
def test_the_real_library_refuses_what_is_no_engine(broken: bytes) -> None:
    with pytest.raises(ValueError, match="readHeader|magicTag"):
        Plan(find_library(RTX), broken)


@needs_rtx
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("Runtime", "deserialize_cuda_engine"),
        ("ICudaEngine", "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype"),
        ("ICudaEngine", "create_runtime_config create_execution_context"),
        ("ICudaEngine", "num_optimization_profiles get_tensor_profile_shape"),
        ("IExecutionContext", "set_input_shape get_tensor_shape set_tensor_address execute_async_v3"),
        ("IExecutionContext", "set_optimization_profile_async"),
        ("IRuntimeConfig", "cuda_graph_strategy create_runtime_cache set_runtime_cache"),
        ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
        ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
        ("IRuntimeCache", "serialize deserialize"),
        ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
        ("TensorIOMode", "INPUT"),
        ("ICudaEngine", "refittable"),
        ("Refitter", "get_all_weights get_missing_weights refit_cuda_engine"),
        ("OnnxParserRefitter", "refit_from_file num_errors get_error"),
        ("BuilderFlag", "STRIP_PLAN REFIT_IDENTICAL"),
    ],
)
def test_the_real_library_has_what_the_stand_in_has(kind: str, names: str) -> None:
    real = getattr(find_library(RTX).module, kind)
    assert [name for name in names.split() if not hasattr(real, name)] == []


@needs_rtx
def test_the_architectures_are_those_that_a_builder_takes() -> None:
    library = find_library(RTX)
    known = architectures(library)
    assert {"sm86", "sm89", "sm120"} <= set(known) and "sm90" not in known
    assert all(hasattr(library.module.ComputeCapability, arch.upper()) for arch in known)
    assert architectures(Library(None, CLASSIC, "10.3")) == []


# Executions


def opened(cuda: FakeCuda, cache: Cache, kind: str = CLASSIC, **told: Any) -> tuple[Execution, FakeTensorRT]:
    trt = FakeTensorRT(cuda)
    held = Plan(Library(trt, kind, "1.0"), plan([2, 3], **told))
    return Execution(held, Device(cuda), {"z": (2, 3)}, cache, KEY), trt


def sigmoid(z: np.ndarray) -> np.ndarray:
    computed: np.ndarray = 1 / (1 + np.exp(-z.astype(np.float64)))
    return computed


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Give an empty cache."""
    return Cache(tmp_path / "cache")


@pytest.mark.parametrize("kind", [CLASSIC, RTX])
def test_calls_use_the_same_buffers(cache: Cache, kind: str) -> None:
    cuda = FakeCuda()
    execution, trt = opened(cuda, cache, kind, outputs=("a", "b"))
    assert execution.inputs == ["z"]
    drawn = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    found = [execution.run({"z": z}) for z in drawn]
    for z, outputs in zip(drawn, found, strict=True):
        np.testing.assert_allclose(outputs["a"], sigmoid(z), rtol=0, atol=PICTURE_OF_NUMPY)
        np.testing.assert_allclose(outputs["b"], 1 + sigmoid(z), rtol=0, atol=PICTURE_OF_NUMPY)
    assert cuda.calls["cudaMalloc"] == 3 and trt.computed == 5


def test_classic_launches_are_recorded_once_after_the_first_call(cache: Cache) -> None:
    cuda = FakeCuda()
    execution, _ = opened(cuda, cache)
    launched = []
    for _ in range(4):
        execution.run({"z": np.zeros((2, 3), np.float32)})
        launched.append((cuda.calls["cudaGraphInstantiate"], cuda.calls["cudaGraphLaunch"]))
    assert launched == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_launches_that_cannot_be_recorded_are_launched_each_time(cache: Cache) -> None:
    cuda = FakeCuda(records=False)
    execution, trt = opened(cuda, cache)
    for z in (np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)):
        np.testing.assert_allclose(execution.run({"z": z})["image"], sigmoid(z), rtol=0, atol=PICTURE_OF_NUMPY)
    assert cuda.calls["cudaGraphLaunch"] == 0 and trt.computed == 2


def test_rtx_records_by_itself_and_what_it_compiled_is_kept(cache: Cache) -> None:
    cuda = FakeCuda()
    execution, trt = opened(cuda, cache, RTX)
    assert trt.compiled == 1 and cache.get(KEY) is None
    execution.run({"z": np.zeros((2, 3), np.float32)})
    assert cache.get(KEY) == b"compiled" and cuda.calls["cudaGraphInstantiate"] == 0
    assert opened(cuda, cache, RTX)[1].compiled == 0
    cache.put(KEY, b"compiled for another driver")
    again, trt = opened(cuda, cache, RTX)
    again.run({"z": np.zeros((2, 3), np.float32)})
    assert trt.compiled == 1 and cache.get(KEY) == b"compiled"


def test_arrays_are_what_the_engine_takes(cache: Cache) -> None:
    execution, _ = opened(FakeCuda(), cache, dtype="float16")
    z = np.linspace(-1, 1, 6, dtype=np.float16).reshape(3, 2).T
    [image] = execution.run({"z": z}).values()
    assert image.dtype == np.float16
    np.testing.assert_array_equal(image, sigmoid(z).astype(np.float16))
    for wrong in (z.T, z[:1], np.zeros((2, 3, 1), np.float16)):
        with pytest.raises(ValueError, match=r"z is \[.*\], not \[2, 3\]"):
            execution.run({"z": wrong})


class Slow(FakeCuda):
    """Give other threads their turn between what a call writes and what it computes."""

    def tell(self, work: Callable[[], None]) -> None:
        time.sleep(1e-3)
        super().tell(work)


def test_threads_take_turns(cache: Cache) -> None:
    execution, _ = opened(Slow(), cache, RTX)
    wrong = []

    def call(number: int) -> None:
        z = np.full((2, 3), number, np.float32)
        for _ in range(5):
            if not np.allclose(execution.run({"z": z})["image"], sigmoid(z), rtol=0, atol=PICTURE_OF_NUMPY):
                wrong.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_memory_goes_back_with_the_execution(cache: Cache, calls: int) -> None:
    cuda = FakeCuda()
    execution, _ = opened(cuda, cache)
    for _ in range(calls):
        execution.run({"z": np.zeros((2, 3), np.float32)})
    assert cuda.memory
    del execution
    if calls == 0:  # what records the launches holds on to it
        gc.collect()
    assert cuda.memory == {} and cuda.calls["cudaStreamDestroy"] == 1


def test_too_little_memory_and_a_damaged_plan_leave_nothing_behind(cache: Cache) -> None:
    cuda = FakeCuda(room=30)
    with pytest.raises(RuntimeError, match="cudaMalloc gave cudaErrorMemoryAllocation"):
        opened(cuda, cache)
    with pytest.raises(ValueError, match="the magic tag is wrong"):
        Plan(Library(FakeTensorRT(cuda), CLASSIC, "1.0"), b"damaged")
    gc.collect()
    assert cuda.memory == {} and cuda.calls["cudaStreamDestroy"] == 1


def test_executions_of_one_engine_have_each_their_batch(cache: Cache) -> None:
    cuda = FakeCuda()
    held = Plan(Library(FakeTensorRT(cuda), CLASSIC, "1.0"), plan([-1, 3]))
    drawn = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    executions = [Execution(held, Device(cuda), {"z": z.shape}, cache, KEY) for z in (drawn, drawn[:1])]
    for _ in range(3):
        for execution, z in zip(executions, (drawn, drawn[:1]), strict=True):
            np.testing.assert_allclose(execution.run({"z": z})["image"], sigmoid(z), rtol=0, atol=PICTURE_OF_NUMPY)
    with pytest.raises(ValueError, match=r"z is \[1, 3\], not \[2, 3\]"):
        executions[0].run({"z": drawn[:1]})
    with pytest.raises(ValueError, match=r"z cannot be \[5, 3\]"):
        Execution(held, Device(cuda), {"z": (5, 3)}, cache, KEY)


def test_an_execution_takes_the_range_that_its_shapes_are_in(cache: Cache) -> None:
    ranges = [([1, 3], [2, 3]), ([1, 2], [1, 2]), ([3, 3], [3, 3])]
    cuda = FakeCuda()
    held = Plan(Library(FakeTensorRT(cuda), RTX, "1.0"), plan([-1, -1], ranges=ranges))
    for shape in [(2, 3), (1, 2), (3, 3)]:
        z = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        execution = Execution(held, Device(cuda), {"z": shape}, cache, KEY)
        np.testing.assert_allclose(execution.run({"z": z})["image"], sigmoid(z), rtol=0, atol=PICTURE_OF_NUMPY)
    with pytest.raises(ValueError, match=r"z cannot be \[2, 2\]"):
        Execution(held, Device(cuda), {"z": (2, 2)}, cache, KEY)


# Engines without weights


def weights(folder: Path, **arrays: float) -> Path:
    """Write a graph that holds numbers, each by its name."""
    held = [numpy_helper.from_array(np.float32(value), name) for name, value in arrays.items()]
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], held)), folder / "g.onnx")
    return folder / "g.onnx"


def without_weights(*names: str) -> Plan:
    return Plan(Library(FakeTensorRT(FakeCuda()), CLASSIC, "1.0"), plan([2, 3], lacks=names))


def test_an_engine_without_weights_takes_those_of_a_graph(cache: Cache, tmp_path: Path) -> None:
    held = without_weights("a", "b")
    cuda = held.library.module.cuda
    z = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    execution = Execution(held, Device(cuda), {"z": (2, 3)}, cache, KEY)
    assert not execution.run({"z": z})["image"].any()
    held.refit(weights(tmp_path, a=2, b=3, other=5))
    np.testing.assert_allclose(execution.run({"z": z})["image"], 6 * sigmoid(z), rtol=0, atol=PICTURE_OF_NUMPY)
    assert held.library.module.refitted == [str(tmp_path / "g.onnx")]


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^g.onnx lacks 2 of its 3 weights, b first: refitted 1 weights out of 3$"):
        without_weights("a", "b", "c").refit(weights(tmp_path, a=2))
    with pytest.raises(ValueError, match=r"^g.onnx lacks 1 of its 1 weights, one without a name first"):
        without_weights("").refit(weights(tmp_path, a=2))


def test_weights_that_are_refused_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^out of memory$"):
        without_weights("a").refit(weights(tmp_path, a=-1))
    whole = Plan(Library(FakeTensorRT(FakeCuda()), CLASSIC, "1.0"), plan([2, 3]))
    with pytest.raises(ValueError, match="it was built with its weights, and takes no others"):
        whole.refit(weights(tmp_path, a=2))


def test_a_parser_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, read = without_weights("a"), FakeOnnxParserRefitter.refit_from_file

    def fail(self: FakeOnnxParserRefitter, path: str) -> bool:
        self.errors.append("the file ends too early")
        return read(self, path)

    monkeypatch.setattr(FakeOnnxParserRefitter, "refit_from_file", fail)
    with pytest.raises(ValueError, match=r"^the file ends too early$"):
        held.refit(weights(tmp_path, a=2))
