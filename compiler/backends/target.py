"""Read what to compile for: ``BACKEND-PRECISION[@ARCH[,ARCH]]``, such as ``ort-fp32`` or ``trt-w4a8@sm86,sm89``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from diffc.compiler.errors import TargetError
from diffc.compiler.ir.program import Graph

if TYPE_CHECKING:  # it imports torch, and targets are listed without it
    from diffc.compiler.backends.tensorrt.build import Built, Wanted
    from diffc.compiler.quantization.formats import Scheme

GROUP = "diffc.backends"
FORM = "BACKEND-PRECISION[@ARCH[,ARCH]], such as ort-fp32 or trt-w4a8@sm86,sm89"
TARGET = re.compile(r"(?P<backend>[^-@]+)-(?P<precision>[^-@]+)(?:@(?P<archs>.+))?")
ARCH = re.compile(r"sm[1-9]\d{1,2}")


Progress = Callable[[str], None]
"""Is told, in a few words, what a long piece of work does next."""


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


@dataclass(frozen=True)
class Target:
    """Name a backend, the precision of its engines and the GPU architectures they are for (none: all that it can)."""

    backend: str
    precision: str
    archs: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = f"@{','.join(self.archs)}" if self.archs else ""
        return f"{self.backend}-{self.precision}{at}"


def parse_target(text: str) -> Target:
    """Read a target and check it against its backend; ``str`` of the result is the text again.

    Raises `TargetError` where the form is wrong or the backend, the precision or an architecture is unknown.
    """
    match = TARGET.fullmatch(text)
    if not match:
        raise TargetError(f"{text!r} is no target", fix=f"write {FORM}")
    backend, precision = match["backend"], match["precision"]
    found = find_backend(backend)
    if precision not in found.precisions:
        fix = f"choose one of {', '.join(f'{backend}-{name}' for name in sorted(found.precisions))}"
        raise TargetError(f"backend {backend} has no precision {precision!r}", where=text, fix=fix)
    archs = _archs(text, match["archs"])
    for arch in archs:
        _check_arch(text, backend, precision, arch, found.archs)
    return Target(backend, precision, archs)


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


def _archs(text: str, listed: str | None) -> tuple[str, ...]:
    archs = tuple(listed.split(",")) if listed else ()
    for arch in archs:
        if not ARCH.fullmatch(arch):
            raise TargetError(f"{arch!r} is no GPU architecture", where=text, fix="write sm86, sm89, sm120, …")
        if archs.count(arch) > 1:
            raise TargetError(f"architecture {arch} is named twice", where=text, fix="name it once")
    return archs


def _check_arch(text: str, backend: str, precision: str, arch: str, able: Mapping[str, Sequence[str]]) -> None:
    """Refuse an architecture that no engine is built for, or not in this precision, with what would do instead."""
    if arch in able.get(precision, ()):
        return
    if not able:
        raise TargetError(
            f"{backend} builds for no GPU", where=text, fix=f"write {backend}-{precision}, or trt-fp16@{arch}"
        )
    others = [f"{backend}-{name}@{arch}" for name, archs in able.items() if arch in archs]
    same = f"{backend}-{precision}@{','.join(able[precision])}"
    if not others:
        raise TargetError(f"{backend} cannot build for {arch}", where=text, fix=f"choose among {same}")
    what = f"{arch} cannot compute {precision}"
    raise TargetError(what, where=text, fix=f"choose {' or '.join(others)}, or {same}")


def _known_backends(name: str) -> str:
    known = sorted({found.name for found in entry_points(group=GROUP)})
    guess = "".join(f"did you mean {close}? " for close in difflib.get_close_matches(name, known, n=1))
    return f"{guess}known: {', '.join(known)}"
