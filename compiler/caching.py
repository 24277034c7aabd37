"""Cache features as a user asks, ``deepcache:interval=3,branch=0``: the last that happens to programs in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffc.compiler.errors import DiffcError, RecipeError
from diffc.compiler.ir import Program
from diffc.compiler.recipe import check_options, parse_methods
from diffc.compiler.verify import verify
from diffc.passes.cache import CACHES

OPTION = "--cache"


@dataclass(frozen=True)
class AskedCache:
    """Hold the cache that a user asked for, and its options."""

    name: str
    options: Mapping[str, Any]

    @property
    def described(self) -> list[Any]:
        """Say it as provenance does."""
        return [self.name, dict(self.options)]

    def applied(self, programs: Sequence[Program]) -> list[Program]:
        """Cache in all programs of a bundle. Raises `PassError` where a program does not admit it."""
        try:
            return [verify(program) for program in CACHES[self.name](programs, **self.options)]
        except DiffcError as error:
            error.inside = f"{OPTION} {self.name}"
            raise


def asked_cache(text: str | None) -> AskedCache | None:
    """Read what is asked for; None for nothing or ``none``. Raises `RecipeError`."""
    if text is None or text == "none":
        return None
    (name, options), *more = parse_methods(text, ("none", *CACHES), "cache")
    if more or name == "none":
        raise RecipeError(
            f"{text!r} is more than one cache", where=OPTION, fix="choose one, such as deepcache:interval=3"
        )
    check_options(name, CACHES[name], options, OPTION)
    return AskedCache(name, options)
