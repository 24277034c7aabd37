"""Open TensorRT engines on the GPU.

A graph whose engine this machine cannot run is opened with ONNX Runtime instead, and a warning reports why.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from diffc.runtime.bundle.manifest import BuiltEngine
from diffc.runtime.bundle.onnx_external_data import external_files, output_names
from diffc.runtime.bundle.open import Bundle
from diffc.runtime.disk_cache import Cache
from diffc.runtime.engines.cuda import Device, Gpu, find_cuda, find_gpu
from diffc.runtime.engines.ort import open_onnx_runtime
from diffc.runtime.engines.registry import split_target
from diffc.runtime.engines.session import Array, Session, reason
from diffc.runtime.engines.tensorrt_library import Execution, Library, Plan, find_library
from diffc.runtime.errors import BundleError, DiffcWarning

BUILDER = re.compile(r"tensorrt(-rtx)? \d[0-9a-z.]*")
ARCH = re.compile(r"sm[1-9]\d{1,2}")


class TensorRT:
    """Run engines that were built ahead of time, where this machine has their GPU."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})

    @classmethod
    def check(cls, precision: str) -> None:
        """Accept every precision: where the engine does not run, ONNX Runtime computes the graph."""

    @classmethod
    def open(cls, bundle: Bundle, graph: str, threads: int) -> Session:
        """Open a graph's engine, or the graph."""
        return open_tensorrt(bundle, graph, threads)


@dataclass(frozen=True)
class Machine:
    """Hold the functions that find GPU, library and CUDA. Each raises `BundleError` where it finds none."""

    gpu: Callable[[], Gpu] = find_gpu
    library: Callable[[str], Library] = find_library
    cuda: Callable[[Gpu], Any] = find_cuda


PLANS: weakref.WeakValueDictionary[tuple[object, ...], Plan] = weakref.WeakValueDictionary()
"""The engines that are open in this process: graphs that differ in shapes alone share one, with its weights."""


def open_tensorrt(bundle: Bundle, graph: str, threads: int, machine: Machine = Machine()) -> Session:
    """Run a graph's engine on the GPU, or the graph in ONNX Runtime where this machine cannot run the engine.

    Arithmetic between components has no engine, nor has a graph in float64. Raises `BundleError` where the engine
    is damaged or does not get its weights, or where ONNX Runtime cannot compute the graph on the CPU.
    """
    if not bundle.manifest.component(graph) or (bundle.manifest.engines and graph not in bundle.manifest.engines):
        return open_onnx_runtime(bundle, graph, threads)
    try:
        gpu, library, cuda = _needed(bundle, graph, machine)
    except BundleError as missing:
        where = bundle.manifest.graphs[graph]
        try:
            session = open_onnx_runtime(bundle, graph, threads)
        except Exception as error:
            what = f"{missing.what}, and ONNX Runtime cannot compute {where} on the CPU: {reason(error)}"
            raise BundleError(what, where=where, fix=missing.fix) from error
        _warn_once(f"{bundle.path} runs in ONNX Runtime, on the CPU: {missing.what}\n  fix: {missing.fix}")
        return session
    return _executed(bundle, graph, gpu, library, cuda)


def _needed(bundle: Bundle, graph: str, machine: Machine) -> tuple[Gpu, Library, Any]:
    """Return the GPU, the library and CUDA. Raises `BundleError` that names the missing one, and how to install it."""
    finalize, engine = f"diffc finalize {bundle.path}", bundle.manifest.engines.get(graph)
    try:
        gpu = machine.gpu()
    except BundleError as error:
        fix = f"run it where a GPU is, or: diffc build … --target ort-{split_target(bundle.manifest.target)[1]}"
        raise BundleError(error.what, fix=fix) from error
    if engine is None:
        raise BundleError("the bundle holds no engines", fix=finalize)
    check_entry(engine)
    if gpu.arch not in engine.archs:
        raise BundleError(f"the engines are for {', '.join(engine.archs)}, and {gpu.name} is {gpu.arch}", fix=finalize)
    library = machine.library(engine.builder.partition(" ")[0])
    if str(library) != engine.builder:
        raise BundleError(f"the engines were built by {engine.builder}, and here is {library}", fix=finalize)
    return gpu, library, machine.cuda(gpu)


def check_entry(engine: BuiltEngine) -> None:
    """Raise `BundleError` where a manifest's engine is none of TensorRT."""
    if not BUILDER.fullmatch(engine.builder) or not engine.archs or not all(map(ARCH.fullmatch, engine.archs)):
        what = f"{engine.builder[:40]!r} for {', '.join(engine.archs)[:80]!r} is no engine of TensorRT"
        raise BundleError(what, where=engine.file[:200], fix="build the bundle again")


def _executed(bundle: Bundle, graph: str, gpu: Gpu, library: Library, cuda: Any) -> Session:
    file = bundle.manifest.engines[graph].file
    key = (*_made_of(bundle, graph), library, gpu)
    called = next(g for program in bundle.programs.values() for g in program.graphs if g.name == graph)
    shapes = {port.name: port.type.fixed for port in called.inputs}
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
        results = execution.run(feeds)
        return [results[name] for name in order]

    return Session([frozenset({name}) for name in execution.inputs], len(order), run, f"{library} on {gpu.name}")


def _made_of(bundle: Bundle, graph: str) -> list[str]:
    """Return the digests of a graph's engine and of its weights: two models may share an engine."""
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
