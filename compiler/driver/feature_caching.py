"""Cache features as a user asks, ``deepcache:interval=3,branch=0``: the last that happens to programs in float."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffc.compiler.calibration.calibrate import Calibration, calibrate
from diffc.compiler.calibration.prompts import read_prompts
from diffc.compiler.errors import DiffcError, Progress, RecipeError
from diffc.compiler.feature_cache.search import Searched
from diffc.compiler.ir.program import Program
from diffc.compiler.ir.verify import verify
from diffc.compiler.quantization.recipe_file import check_options, parse_methods
from diffc.passes.cache import CACHES
from diffc.runtime.disk_cache import Cache

OPTION = "--cache"


@dataclass(frozen=True)
class AskedCache:
    """Hold the cache that a user asked for, its options, and what its trajectories are drawn from if it needs any."""

    name: str
    options: Mapping[str, Any]
    prompts: tuple[str, ...] = ()
    seed: int = 0

    @property
    def described(self) -> list[Any]:
        """Say it as provenance does."""
        return [self.name, dict(self.options)]

    @property
    def is_calibrated(self) -> bool:
        """Say whether the cache looks at trajectories."""
        return "calibrated" in inspect.signature(CACHES[self.name]).parameters

    @property
    def is_compared(self) -> bool:
        """Say whether the cache compares with a program of twice as many steps."""
        return "finer" in inspect.signature(CACHES[self.name]).parameters

    def applied(
        self,
        programs: Sequence[Program],
        tokenizers: Mapping[str, str],
        source: str,
        progress: Progress,
        finer: Program | None = None,
    ) -> tuple[list[Program], dict[str, Any] | None]:
        """Cache in all programs, and give what was measured. Raises `PassError` where it is not possible."""
        texts = {name: text.encode() for name, text in tokenizers.items()}

        def looks(program: Program) -> Calibration:
            return calibrate(
                program,
                texts,
                prompts=self.prompts,
                seed=self.seed,
                source=source,
                cache=Cache.default(),
                progress=progress,
            )

        progress(f"cache: {self.name}")
        try:
            given = [looks] * self.is_calibrated + [finer] * self.is_compared
            made = CACHES[self.name](programs, *given, **self.options)
        except DiffcError as error:
            error.inside = f"{OPTION} {self.name}"
            raise
        if isinstance(made, Searched):
            return [verify(program) for program in made.programs], made.described
        return [verify(program) for program in made], None


def asked_cache(text: str | None, prompts: Path | str | None = None, seed: int = 0) -> AskedCache | None:
    """Read what is asked for; None for nothing or ``none``. Raises `RecipeError`, and `BuildError` for the prompts."""
    if text is None or text == "none":
        return None
    (name, options), *more = parse_methods(text, ("none", *CACHES), "cache")
    if more or name == "none":
        fix = "choose one, such as deepcache:interval=3"
        raise RecipeError(f"{text!r} is more than one cache", where=OPTION, fix=fix)
    check_options(name, CACHES[name], options, OPTION)
    return AskedCache(name, options, read_prompts(Path(prompts)) if prompts is not None else (), seed)
