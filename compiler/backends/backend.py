"""Define the interface of back ends, and find the registered ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from diffc.compiler.errors import Progress, TargetError
from diffc.compiler.ir.program import Graph
from diffc.runtime.entry_points import find_entry_point
from diffc.runtime.precisions import Precision

if TYPE_CHECKING:  # it imports torch, and targets are listed without it
    from diffc.compiler.quantization.formats import Scheme


GROUP = "diffc.backends"


@dataclass(frozen=True)
class BuiltEngine:
    """Describe an engine that was built ahead of time: its file in the bundle, its builder, and its GPUs.

    A back end may add fields: the bundle's report shows all of them.
    """

    file: str
    builder: str
    archs: tuple[str, ...]

    @property
    def entry(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        return {"file": self.file, "builder": self.builder, "archs": list(self.archs)}


@dataclass(frozen=True)
class Lowered:
    """Hold lowered graphs, to build engines of: their files below a folder, a precision, and GPU architectures."""

    graphs: Sequence[Graph]
    files: Mapping[str, str]
    precision: str
    archs: Sequence[str]
    folder: Path
    progress: Progress


class Backend(Protocol):
    """Turn graphs into files that an engine runs."""

    precisions: ClassVar[Mapping[str, Precision]]
    """The precisions that it supports, by name."""

    computes: ClassVar[Mapping[str, str]]
    """The type in which graphs of a precision compute, as ``float16``; float32 where a precision is not named."""

    archs: ClassVar[Mapping[str, Sequence[str]]]
    """The GPU architectures that engines of a precision can be built for; none where no engine is built."""

    kind: ClassVar[str]
    """The kind of its graphs' files, as the manifest names it and engines open it: ``onnx``."""

    @classmethod
    def bytes_per_weight(cls, precision: str) -> float:
        """Return the bytes that a bundle holds for each large weight."""

    @classmethod
    def adapted(cls, kind: str, scheme: Scheme) -> tuple[Scheme, str]:
        """Return the scheme that the engine computes for a kind of layer, and a note on the differences, if any."""

    def lower(self, graphs: Sequence[Graph], precision: str, folder: Path, progress: Progress) -> dict[str, str]:
        """Write the graphs' files below the folder and return the file of each graph."""

    def custom_operators(self, graph: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the manifest's entries for the operators of plugins that a lowered graph needs, by domain."""

    def engines(self, lowered: Lowered) -> Mapping[str, BuiltEngine]:
        """Build engines of the files ahead of time, where the back end does that; return each graph's."""


def find_backend(name: str) -> type[Backend]:
    """Import the class that registered under this name in the entry-point group ``diffc.backends``.

    Raises `TargetError` where no package did, where two did, or where the backend's packages are not installed.
    """
    claim = find_entry_point(GROUP, name, "backend", TargetError)
    try:
        backend: type[Backend] = claim.load()
    except (ImportError, AttributeError) as error:
        extras = ",".join(_extras(claim) or ["compiler"])
        fix = f"install its packages: pip install 'diffc[{extras}]'"
        raise TargetError(f"backend {name!r} cannot be imported: {error}", where=claim.value, fix=fix) from error
    return backend


def _extras(claim: EntryPoint) -> list[str]:
    """Return the extras of an entry point ``module:name [extra, …]``; `EntryPoint.extras` splits them at hyphens."""
    _, _, extras = claim.value.partition("[")
    return [extra.strip() for extra in extras.rstrip("] ").split(",") if extra.strip()]
