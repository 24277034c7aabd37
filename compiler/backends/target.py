"""Parse targets: ``BACKEND-PRECISION[@ARCH[,ARCH]]``, such as ``ort-fp32`` or ``trt-w4a8@sm86,sm89``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffc.compiler.backends.backend import find_backend
from diffc.compiler.errors import TargetError

FORM = "BACKEND-PRECISION[@ARCH[,ARCH]], such as ort-fp32 or trt-w4a8@sm86,sm89"
TARGET = re.compile(r"(?P<backend>[^-@]+)-(?P<precision>[^-@]+)(?:@(?P<archs>.+))?")
ARCH = re.compile(r"sm[1-9]\d{1,2}")


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
    class_ = find_backend(backend)
    if precision not in class_.precisions:
        fix = f"choose one of {', '.join(f'{backend}-{name}' for name in sorted(class_.precisions))}"
        raise TargetError(f"backend {backend} has no precision {precision!r}", where=text, fix=fix)
    archs = _archs(text, match["archs"])
    for arch in archs:
        _check_arch(text, backend, precision, arch, class_.archs)
    return Target(backend, precision, archs)


def _archs(text: str, listed: str | None) -> tuple[str, ...]:
    archs = tuple(listed.split(",")) if listed else ()
    for arch in archs:
        if not ARCH.fullmatch(arch):
            raise TargetError(f"{arch!r} is no GPU architecture", where=text, fix="write sm86, sm89, sm120, …")
        if archs.count(arch) > 1:
            raise TargetError(f"architecture {arch} is named twice", where=text, fix="name it once")
    return archs


def _check_arch(text: str, backend: str, precision: str, arch: str, able: Mapping[str, Sequence[str]]) -> None:
    """Refuse an architecture that no engine is built for, or not in this precision, with the ones that are."""
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
