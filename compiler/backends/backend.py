"""Define what a back end is, and find those that are registered."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from diffc.compiler.errors import Progress, TargetError
from diffc.compiler.ir.program import Graph

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
    claims: dict[str, EntryPoint] = {found.value: found for found in entry_points(group=GROUP, name=name)}
    if not claims:
        raise TargetError(f"unknown backend {name!r}", fix=_known_backends(name))
    if len(claims) > 1:
        where = " and ".join(sorted(claims))
        raise TargetError(f"backend {name!r} is claimed twice", where=where, fix="uninstall one of the two packages")
    (value, claim), *_ = claims.items()
    try:
        backend: type[Backend] = claim.load()
    except (ImportError, AttributeError) as error:
        fix = f"install what it needs: pip install 'diffc[{','.join(['compiler', *claim.extras])}]'"
        raise TargetError(f"backend {name!r} cannot be imported: {error}", where=value, fix=fix) from error
    return backend


def _known_backends(name: str) -> str:
    known = sorted({found.name for found in entry_points(group=GROUP)})
    guess = "".join(f"did you mean {close}? " for close in difflib.get_close_matches(name, known, n=1))
    return f"{guess}known: {', '.join(known)}"
