"""Define the errors that a user can meet: the fault, its place, and the change that mends it."""

from __future__ import annotations

import re

TERMINAL_CODES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b.|[\x00-\x08\x0b-\x1f\x7f]")
"""What a library writes for terminals alone: colours, and other characters that control them."""


class DiffcError(Exception):
    """Describe an error in up to four lines: what, where (``at:``), what to change (``fix:``), and a phase (``in:``).

    ``inside`` is set by code that catches the error and raises it again, such as the pass manager.

    >>> print(DiffcError("shapes.diffc is truncated", where="weights/0.bin", fix="build it again"))
    shapes.diffc is truncated
      at:  weights/0.bin
      fix: build it again
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = TERMINAL_CODES.sub("", what)
        self.where = where and TERMINAL_CODES.sub("", where)
        self.fix = fix and TERMINAL_CODES.sub("", fix)
        super().__init__(self.what)
        self.inside: str | None = None

    def __str__(self) -> str:
        """Print one line for each part that is known."""
        parts = [("", self.what), ("  at:  ", self.where), ("  fix: ", self.fix), ("  in:  ", self.inside)]
        return "\n".join(label + " ".join(text.splitlines()) for label, text in parts if text)


class ParseError(DiffcError):
    """Refuse a text that is not a program, with the line that breaks the grammar."""


class VerifyError(DiffcError):
    """Refuse a program that breaks a rule, with the operation that breaks it."""


class BundleError(DiffcError):
    """Refuse a bundle: too new, truncated, tampered with, or built for another machine."""


class RequestError(DiffcError):
    """Refuse a request that the bundle cannot serve: its seed, size, prompt or latents."""


class Cancelled(RequestError):
    """Report that the callback stopped a request. The sampler stays usable."""


class DiffcWarning(UserWarning):
    """Warn of an input that was accepted with a change, such as a truncated prompt."""
