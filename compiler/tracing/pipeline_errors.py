"""Name the line of a pipeline's code in errors of its trace."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffc.compiler.errors import CaptureError

OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
STDLIB = sysconfig.get_path("stdlib")


class PipelineRefusal(CaptureError):
    """Report that the pipeline itself refuses the request."""


@contextmanager
def pipeline_errors() -> Iterator[None]:
    """Raise each failure as a `CaptureError` that names the line of the pipeline's code where it arose."""
    try:
        yield
    except Exception as error:
        kind: type[CaptureError] = CaptureError
        if isinstance(error, CaptureError):
            kind = PipelineRefusal if isinstance(error, PipelineRefusal) else CaptureError
            what, fix = error.what, error.fix
        elif type(error).__name__ in ("DataDependentOutputException", "DynamicOutputShapeException"):
            what, fix = f"{error} reads the value of a symbolic tensor", None
        else:
            what, fix = f"the pipeline refuses: {error}", "change the option or the input that it names"
            kind = PipelineRefusal
        fix = fix or "the sampler must not branch on, or read, what only the run knows"
        raise kind(what, where=pipeline_line(traceback.extract_tb(error.__traceback__)), fix=fix) from error


def size_fix(pipeline: Any, size: tuple[int, int] | None) -> str | None:
    """Return the fix for a width or height that is no multiple of what the autoencoder scales by; None elsewhere."""
    factor = getattr(pipeline, "vae_scale_factor", 1)
    if any(edge % factor for edge in size or ()):
        return f"use a --size whose width and height are multiples of {factor}, or of more"
    return None


def pipeline_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """Return the innermost line that is neither PyTorch's nor ours nor of Python's own library."""
    theirs = [frame for frame in frames if not frame.filename.startswith(OURS) and not _is_python(frame.filename)]
    last = theirs[-1] if theirs else frames[-1]
    return f"{last.filename}:{last.lineno}: {last.line}"


def _is_python(file: str) -> bool:
    return file.startswith(STDLIB) and not {"site-packages", "dist-packages"} & set(Path(file).parts)
