"""Define the errors of the compiler, one for each kind of fault, in the form of ``diffc.runtime.errors``."""

from __future__ import annotations

from collections.abc import Callable

from diffc.runtime.errors import DiffcError, DiffcWarning, ParseError, VerifyError

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
    """Refuse a checkpoint that is damaged, incomplete, unsafe or not a model that can be compiled."""


class CaptureError(DiffcError):
    """Refuse pipeline code that cannot be traced, with its line."""


class PassError(DiffcError):
    """Refuse to rewrite: the pass does not apply, or its options make no sense."""


class BackendError(DiffcError):
    """Report an operator, a precision or an engine that a backend cannot provide."""


class TargetError(DiffcError):
    """Refuse a target that names no backend, precision or architecture."""


class BuildError(DiffcError):
    """Report a build that cannot start or finish: an output that exists, a full disk, a wrong option."""


class CalibrationError(DiffcError):
    """Report values that no format can hold, or prompts that cannot be read, in a calibration."""


class RecipeError(DiffcError):
    """Refuse a recipe or a scheme that names unknown layers, techniques or formats, or cannot be computed."""


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def root_cause(error: BaseException) -> BaseException:
    """Return the error that a library's error arose from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


Progress = Callable[[str], None]
"""A callback that long work calls with a short message before each of its parts."""
