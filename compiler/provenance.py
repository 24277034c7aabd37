"""Read back how a bundle was built, so that the pipeline it was built from can draw the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffc.compiler.errors import BuildError


def steps_of(program: str) -> int:
    """Give the number of steps that the pipeline was asked for when a program was traced; its name says it."""
    found = re.search(r"_(\d+)(_no_negative|_unguided)?$", program)
    if found is None:
        raise BuildError(f"{program} was not built from a pipeline", fix="compare it in the code that made it")
    return int(found[1])


def arguments_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a recipe fixed of the pipeline's call; a pipeline need not take all of it."""
    width, height = recipe["size"] or (None, None)
    fixed = {"width": width, "height": height, "strength": recipe["strength"]}
    return {**{key: value for key, value in fixed.items() if value is not None}, **recipe["options"]}
