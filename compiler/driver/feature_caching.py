"""Cache features as a user asks, ``deepcache:interval=3,branch=0``: the last that happens to programs in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

from diffc.compiler.calibration.calibrate import Calibrate
from diffc.compiler.driver.pass_manager import PROGRAMS, run_recipe
from diffc.compiler.errors import DiffcError, Progress, RecipeError
from diffc.compiler.feature_cache.search import Searched
from diffc.compiler.ir.program import Program
from diffc.compiler.quantization.recipe_file import parse_passes
from diffc.compiler.recipe import Optional, name_of, optional, options_of
from diffc.passes.cache import CACHES, Need

OPTION = "--cache"


@dataclass(frozen=True)
class AskedCache:
    """Hold the cache of a build and its options; where it is optional, it may change nothing."""

    name: str
    options: Mapping[str, Any]
    is_optional: bool = False

    @property
    def described(self) -> list[Any]:
        """Say it as provenance does."""
        return [self.name, dict(self.options)]

    @property
    def is_calibrated(self) -> bool:
        """Say whether the cache looks at trajectories."""
        return Need.CALIBRATOR in CACHES[self.name].needs

    @property
    def is_compared(self) -> bool:
        """Say whether the cache compares with a program of twice as many steps."""
        return Need.FINER_PROGRAM in CACHES[self.name].needs

    def applied(
        self,
        programs: Sequence[Program],
        calibrate: Calibrate,
        progress: Progress,
        finer: Program | None = None,
    ) -> tuple[list[Program], dict[str, Any] | None]:
        """Cache in all programs, and give what was measured. Raises `PassError` where it is not possible."""
        cache, searched = CACHES[self.name], list[dict[str, Any]]()
        supplies = {Need.CALIBRATOR: calibrate, Need.FINER_PROGRAM: finer}

        @wraps(cache.apply)
        def apply(programs: tuple[Program, ...]) -> tuple[Program, ...]:
            result = cache.apply(programs, *(supplies[need] for need in cache.needs), **self.options)
            if isinstance(result, Searched):
                searched.append(result.described)
                return result.programs
            return tuple(result)

        recipe = [optional(apply) if self.is_optional else apply]
        try:
            cached = run_recipe(tuple(programs), recipe, PROGRAMS, progress=lambda _: progress(f"cache: {self.name}"))
        except DiffcError as error:
            error.inside = f"{OPTION} {self.name}"
            raise
        return list(cached), next(iter(searched), None)


def asked_cache(text: str | None) -> AskedCache | None:
    """Read what is asked for; None for nothing or ``none``. Raises `RecipeError`."""
    if text is None:
        return None
    known = {"none": _none} | {name: cache.apply for name, cache in CACHES.items()}
    cache, *more = parse_passes(text, known, OPTION, "cache")
    if more:
        fix = "choose one, such as deepcache:interval=3"
        raise RecipeError(f"{text!r} is more than one cache", where=OPTION, fix=fix)
    name = next(name for name, function in known.items() if function.__name__ == name_of(cache))
    return None if name == "none" else AskedCache(name, options_of(cache), isinstance(cache, Optional))


def _none(programs: tuple[Program, ...]) -> tuple[Program, ...]:
    """Leave out the cache."""
    return programs
