"""Say what is wrong, where, and what to change: every error that a user can meet."""

from __future__ import annotations


class DiffcError(Exception):
    """State an error in up to four lines: what, where (``at:``), what to change (``fix:``), during what (``in:``).

    ``inside`` is set by whoever knows it and re-raises, such as the pipeline that ran the pass.

    >>> print(DiffcError("shapes.diffc is truncated", where="weights/0.bin", fix="build it again"))
    shapes.diffc is truncated
      at:  weights/0.bin
      fix: build it again
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix
        self.inside: str | None = None

    def __str__(self) -> str:
        """Print one line for each part that is known."""
        parts = [("", self.what), ("  at:  ", self.where), ("  fix: ", self.fix), ("  in:  ", self.inside)]
        return "\n".join(label + " ".join(text.splitlines()) for label, text in parts if text)


class BundleError(DiffcError):
    """Refuse a bundle: too new, truncated, tampered with, or built for another machine."""


class RequestError(DiffcError):
    """Refuse a request that the bundle cannot serve: its seed, size, prompt or latents."""


class Cancelled(RequestError):
    """Report that the callback stopped a request. The sampler stays usable."""


class DiffcWarning(UserWarning):
    """Tell the user of something that was let through, such as a prompt that was cut."""
