"""Define what a back end is, and find those that are registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from diffc.compiler.errors import Progress, TargetError
from diffc.compiler.ir.program import Graph
from diffc.runtime.entry_points import find_entry_point

if TYPE_CHECKING:  # it imports torch, and targets are listed without it
    from diffc.compiler.backends.tensorrt.build import Built, Wanted
    from diffc.compiler.quantization.formats import Scheme


GROUP = "diffc.backends"


class Backend(Protocol):
    """Turn graphs into files that an engine runs."""

    precisions: ClassVar[Mapping[str, float]]
    """What it supports, and how many bytes it stores for each large weight."""

    computes: ClassVar[Mapping[str, str]]
    """What graphs of a precision compute in, as ``float16``; float32 where a precision is not named."""

    archs: ClassVar[Mapping[str, Sequence[str]]]
    """The GPU architectures that engines of a precision can be built for; none where no engine is built."""

    @classmethod
    def adapted(cls, kind: str, scheme: Scheme) -> tuple[Scheme, str]:
        """Change a layer's scheme to one that the engine computes, and say what it does instead, if anything."""

    def lower(self, graphs: Sequence[Graph], precision: str, folder: Path, progress: Progress) -> dict[str, str]:
        """Write the engine's files below the folder and give the file of each graph."""

    def engines(
        self, wanted: Sequence[Wanted], precision: str, archs: Sequence[str], folder: Path, progress: Progress
    ) -> dict[str, Built]:
        """Build engines ahead of time, below the folder, where the backend does that; give each graph's."""


def find_backend(name: str) -> type[Backend]:
    """Import the class that registered under this name in the entry-point group ``diffc.backends``.

    Raises `TargetError` where nobody did, where two did, or where what the backend needs is not installed.
    """
    claim = find_entry_point(GROUP, name, "backend", TargetError)
    try:
        backend: type[Backend] = claim.load()
    except (ImportError, AttributeError) as error:
        fix = f"install what it needs: pip install 'diffc[{','.join(['compiler', *claim.extras])}]'"
        raise TargetError(f"backend {name!r} cannot be imported: {error}", where=claim.value, fix=fix) from error
    return backend
