"""Read back how a bundle was built, so that the pipeline it was built from can draw the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffc.compiler.errors import BuildError

NAME = re.compile(r"_(?P<steps>\d+)(?:_(?P<width>\d+)x(?P<height>\d+))?(?:_no_negative|_unguided)?$")
"""How the names of programs end that were built from a pipeline."""


def size_of(program: str, recipe: Mapping[str, Any]) -> tuple[int, int] | None:
    """Give the size that the pipeline was asked for when a program was traced; None where nobody said one.

    Raises `BuildError` for bundles that do not know.
    """
    found = _said(program)
    if found["width"]:
        return int(found["width"]), int(found["height"])
    if "sizes" not in recipe:
        raise BuildError("an older diffc built this bundle, and does not say of which sizes", fix="build it again")
    return next((tuple(size) for size in recipe["sizes"]), None)


def arguments_of(program: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Give what was fixed of the pipeline's call when a program was traced; a pipeline need not take all of it."""
    width, height = size_of(program, recipe) or (None, None)
    fixed = {"width": width, "height": height, "strength": recipe["strength"]}
    said = {key: value for key, value in fixed.items() if value is not None}
    return {"num_inference_steps": int(_said(program)["steps"]), **said, **recipe["options"]}


def _said(program: str) -> re.Match[str]:
    found = NAME.search(program)
    if found is None:
        raise BuildError(f"{program} was not built from a pipeline", fix="compare it in the code that made it")
    return found
