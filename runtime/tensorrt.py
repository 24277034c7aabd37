"""Find and load TensorRT: the one place that knows where its libraries lie.

There are two with one API. TensorRT for RTX builds engines without a GPU, for several architectures, and finishes them
on the machine that runs them; the classic TensorRT builds for the GPU that is there. A package of bindings and one of
libraries make up the former where NVIDIA's own, which needs its own index, is not installed.

Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/porting.html
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, files, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffc.runtime.errors import BundleError

RTX, CLASSIC = "tensorrt-rtx", "tensorrt"

INSTALL = {RTX: "pip install 'diffc[tensorrt]'", CLASSIC: "pip install tensorrt cuda-bindings"}
"""What brings each kind to a machine, and with it what runs its engines."""

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
    """Load TensorRT: the kind that is asked for, or else the first of the two that is installed.

    Raises `BundleError` with the command that installs it.
    """
    wanted = kind or next(iter(installed()), RTX)
    try:
        module = _import(wanted)
    except (ImportError, OSError) as error:
        name = "TensorRT for RTX" if wanted == RTX else "TensorRT"
        raise BundleError(f"{name} cannot be loaded: {error}", fix=INSTALL[wanted]) from error
    return Library(module, wanted, str(module.__version__))


@cache
def installed() -> dict[str, str]:
    """Map the kinds that are installed to their versions, without importing any."""
    found = dict[str, str]()
    for kind, packages in ((RTX, ("tensorrt-rtx", BINDINGS)), (CLASSIC, ("tensorrt",))):
        for package in packages:
            try:
                found.setdefault(kind, version(package))
            except PackageNotFoundError:
                continue
    return found


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
    """Find the library in the package that holds it, and then what reads ONNX for it."""
    try:
        held = {file.name.partition(".so.")[0]: Path(str(file.locate())) for file in files(LIBRARIES) or ()}
        return [held[name] for name in SHARED]
    except (PackageNotFoundError, KeyError) as error:
        raise ImportError(f"{LIBRARIES} is not installed, or does not hold {' and '.join(SHARED)}") from error
