"""Cache features as a user asks, ``deepcache:interval=3,branch=0``: the last that happens to programs in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffc.compiler.calibration.calibrate import Calibrate
from diffc.compiler.errors import DiffcError, Progress, RecipeError
from diffc.compiler.feature_cache.search import Searched
from diffc.compiler.ir.program import Program
from diffc.compiler.ir.verify import verify
from diffc.compiler.quantization.recipe_file import check_options, parse_methods
from diffc.passes.cache import CACHES, Need

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
        cache = CACHES[self.name]
        supplies = {Need.CALIBRATOR: calibrate, Need.FINER_PROGRAM: finer}
        progress(f"cache: {self.name}")
        try:
            made = cache.apply(programs, *(supplies[need] for need in cache.needs), **self.options)
        except DiffcError as error:
            error.inside = f"{OPTION} {self.name}"
            raise
        if isinstance(made, Searched):
            return [verify(program) for program in made.programs], made.described
        return [verify(program) for program in made], None


def asked_cache(text: str | None) -> AskedCache | None:
    """Read what is asked for; None for nothing or ``none``. Raises `RecipeError`."""
    if text is None or text == "none":
        return None
    (name, options), *more = parse_methods(text, ("none", *CACHES), "cache")
    if more or name == "none":
        fix = "choose one, such as deepcache:interval=3"
        raise RecipeError(f"{text!r} is more than one cache", where=OPTION, fix=fix)
    check_options(name, CACHES[name].apply, options, OPTION)
    return AskedCache(name, options)
