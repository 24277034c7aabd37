"""Write a recipe: a sequence of passes, each with its options bound by ``functools.partial``.

A pass that changes nothing is an error, unless the recipe marks it: ``optional(partial(smoothquant, samples=8))``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Pass = Callable[[T], T]
"""A function from its subject, a program, the programs of a bundle or a plan, to the rewritten subject."""


@dataclass(frozen=True)
class Optional(Generic[T]):
    """Hold a pass that may change nothing."""

    rewrite: Pass[T]

    def __call__(self, subject: T) -> T:
        """Run the pass."""
        return self.rewrite(subject)


def optional(rewrite: Pass[T]) -> Optional[T]:
    """Return a pass that may change nothing."""
    return Optional(rewrite)


def name_of(rewrite: Pass[Any]) -> str:
    """Return the name of a pass's function."""
    return str(_function(rewrite).__name__)


def options_of(rewrite: Pass[Any]) -> Mapping[str, Any]:
    """Return the options that a recipe binds of a pass."""
    bound = rewrite.rewrite if isinstance(rewrite, Optional) else rewrite
    return bound.keywords if isinstance(bound, partial) else {}


def is_unchanged(before: Any, after: Any) -> bool:
    """Return whether a pass left a value as it was.

    Dataclasses and sequences are compared part by part, arrays by identity.
    """
    if before is after:
        return True
    if type(before) is not type(after) or hasattr(before, "shape"):
        return False
    if is_dataclass(before):
        names = (field.name for field in fields(before))
        return all(is_unchanged(getattr(before, name), getattr(after, name)) for name in names)
    if isinstance(before, tuple | list):
        return len(before) == len(after) and all(map(is_unchanged, before, after))
    return bool(before == after)


def _function(rewrite: Any) -> Any:
    bound = rewrite.rewrite if isinstance(rewrite, Optional) else rewrite
    return bound.func if isinstance(bound, partial) else bound
