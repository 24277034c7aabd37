"""Check which targets this machine can build and run, and which packages are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import onnxruntime

from diffc.compiler.backends.backend import GROUP, find_backend
from diffc.compiler.errors import TargetError
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.engines.cpu import multiplies_bytes
from diffc.runtime.engines.cuda import find_cuda, find_gpu
from diffc.runtime.engines.openvino import INSTALL, openvino_version, recommended
from diffc.runtime.engines.ort import ENGINE, OnnxRuntime, check_version
from diffc.runtime.engines.registry import check_engine
from diffc.runtime.engines.tensorrt_library import INSTALL as INSTALL_TENSORRT
from diffc.runtime.engines.tensorrt_library import RTX, architectures, find_library, installed
from diffc.runtime.entry_points import registered
from diffc.runtime.errors import BundleError
from diffc.runtime.plugins import GROUP as PLUGINS
from diffc.runtime.plugins import find_plugin, state_of

OPTIONAL = ("engine", "gpu", "tensorrt", "compiler", "targets")
"""Checks of what a machine need not have to run bundles."""

COMPILER = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors", "scipy")


def examine(bundle: Path | None) -> dict[str, Any]:
    """Return ``checks`` (name → ok, detail), the ``targets`` that can be built here and, of a bundle, whether it runs.

    ``engine`` is the backend whose engine is the faster one on this CPU, installed or not.

    Raises `BundleError` where the bundle is damaged.
    """
    checks = {"python": _check(True, f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores")}
    checks["runtime"] = _check(
        True, f"onnxruntime {onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"
    )
    checks["engine"] = _engine()
    checks["gpu"], checks["tensorrt"] = _gpu(), _tensorrt()
    missing = [name for name in COMPILER if importlib.util.find_spec(name) is None]
    detail = "missing " + ", ".join(missing) + ": pip install 'diffc[compiler]'" if missing else "complete"
    checks["compiler"] = _check(not missing, detail)
    checks["disk"] = _check(True, f"{shutil.disk_usage('.').free / 1e9:.1f} GB free here")
    targets = list[str]()
    for name in [] if missing else sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)}):
        try:
            targets += [f"{name}-{precision}" for precision in sorted(find_backend(name).precisions)]
        except TargetError as error:
            checks[f"backend {name}"] = _check(False, f"{error.what}: {error.fix}")
    checks["targets"] = _check(bool(targets), ", ".join(targets) or "none without the compiler")
    checks |= {f"plugin {name}": _plugin(name) for name in registered(PLUGINS)}
    if bundle is not None:
        checks["bundle"] = _bundle(bundle)
        checks |= _kernels(bundle)
    return {"checks": checks, "targets": targets, "engine": recommended()}


def label(name: str, is_ok: bool) -> str:
    """Name the result of a check in a word: a machine may lack all but what one bundle needs."""
    is_optional = name in OPTIONAL or name.startswith("backend ")
    return "ok" if is_ok else "not here" if is_optional else "FAILS"


def _engine() -> dict[str, Any]:
    """Check for the engine that is faster on this CPU."""
    version = openvino_version()
    here = f"openvino {version}" if version else f"openvino is missing: {INSTALL}"
    bytes_ = "" if multiplies_bytes() else "; 8-bit weights are multiplied in float, as this CPU has no VNNI"
    if recommended() == "ov":
        detail = f"{here}; on this CPU the targets ov-fp32 and ov-bf16 are faster for large models"
        return _check(bool(version), detail + bytes_)
    return _check(True, f"the target ort-fp32 is the best for this CPU; {here}{bytes_}")


def _gpu() -> dict[str, Any]:
    try:
        gpu = find_gpu()
    except BundleError as error:
        return _check(False, f"{error.what}: {error.fix}")
    return _check(True, f"{gpu.name}, {gpu.arch}, with a driver for CUDA {gpu.cuda}")


def _tensorrt() -> dict[str, Any]:
    """Check for TensorRT: its version, the GPUs that it builds ``trt-…`` for, and whether engines run here."""
    libraries = list[str]()
    for kind in installed():
        try:
            library = find_library(kind)
        except BundleError as error:
            return _check(False, f"{error.what}: {error.fix}")
        libraries.append(f"{library} builds trt-… for {', '.join(architectures(library)) or 'the GPU that is here'}")
    if not libraries:
        return _check(False, f"no TensorRT is installed, which targets trt-… need: {INSTALL_TENSORRT[RTX]}")
    try:
        gpu = find_gpu()
        find_cuda(gpu)
        runs = f"engines for {gpu.arch} run here"
    except BundleError as error:
        runs = f"no engine runs here, and ONNX Runtime takes its place: {error.what}"
    return _check(True, "; ".join([*libraries, runs]))


def _bundle(path: Path) -> dict[str, Any]:
    bundle = open_bundle(path)
    target = bundle.manifest.target
    try:
        if check_engine(target) is OnnxRuntime:
            for graph, file in bundle.manifest.graphs.items():
                check_version(bundle.graph(graph), file)
    except BundleError as error:
        return _check(False, f"{path} is whole and does not run here: {error.what}: {error.fix}")
    return _check(True, f"{path} is whole and runs here: {target}, {', '.join(bundle.programs)}")


def _plugin(domain: str) -> dict[str, Any]:
    """Check whether a plugin can be imported, and list its operators and libraries."""
    try:
        plugin = find_plugin(domain)
    except BundleError as error:
        return _check(False, f"{error.what}: {error.fix}")
    libraries = ", ".join(f"{path.name} for {engine}" for engine, path in plugin.libraries.items())
    operators = ", ".join(operator.onnx for operator in plugin.operators)
    return _check(True, f"{plugin.package} brings {operators}; {libraries or 'every target writes them out'}")


def _kernels(path: Path) -> dict[str, dict[str, Any]]:
    """Check which kernels compute the operators of plugins in a bundle."""
    manifest = open_bundle(path).manifest
    entries = {domain: entry for graph in manifest.graphs for domain, entry in manifest.operators(graph).items()}
    return {f"kernels {domain}": _check(*state_of(domain, entry, ENGINE)) for domain, entry in entries.items()}


def _check(ok: bool, detail: str) -> dict[str, Any]:
    return {"ok": ok, "detail": detail}
