"""Name the stage of the compilation that failed. The form of every error is that of ``diffc.runtime.errors``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from diffc.runtime.errors import DiffcError, DiffcWarning

if TYPE_CHECKING:  # it imports torch, and targets are listed without it
    pass

__all__ = [
    "BackendError",
    "BuildError",
    "CalibrationError",
    "CaptureError",
    "DiffcError",
    "DiffcWarning",
    "LoadError",
    "ParseError",
    "PassError",
    "RecipeError",
    "TargetError",
    "VerifyError",
]


class LoadError(DiffcError):
    """Refuse a checkpoint that is damaged, incomplete, unsafe, or no model that can be compiled."""


class CaptureError(DiffcError):
    """Refuse pipeline code that cannot be traced, with the line that asks for the impossible."""


class ParseError(DiffcError):
    """Refuse a text that is no program, with the line that is not in the grammar."""


class VerifyError(DiffcError):
    """Refuse a program that breaks a rule of the IR."""


class PassError(DiffcError):
    """Refuse to rewrite: the pass does not apply, or its options make no sense."""


class BackendError(DiffcError):
    """Report an operator, a precision or an engine that a backend cannot provide."""


class TargetError(DiffcError):
    """Refuse a target that names no backend, precision or architecture."""


class BuildError(DiffcError):
    """Report a build that cannot start or finish: an output that exists, a full disk, a wrong option."""


class CalibrationError(DiffcError):
    """Report numbers that no format can hold, met while the program was run to calibrate it."""


class RecipeError(DiffcError):
    """Refuse a recipe or a scheme that names what does not exist or cannot be computed."""


def first_line(error: Exception) -> str:
    """Shorten what a library said to its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


Progress = Callable[[str], None]
"""Is told, in a few words, what a long piece of work does next."""
