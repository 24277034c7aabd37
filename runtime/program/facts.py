"""Define the facts of a program: how its pipeline was called when it was traced."""

from __future__ import annotations

from dataclasses import dataclass

GUIDED, NO_NEGATIVE, UNGUIDED = "", "no_negative", "unguided"
VARIANTS = (GUIDED, NO_NEGATIVE, UNGUIDED)
"""The program of a request with guidance, of one without a negative prompt, and of one without guidance."""


@dataclass(frozen=True)
class Facts:
    """State the task, the number of steps, the requested size in pixels and the variant of a program.

    The size is a width and a height, or None for the pipeline's own.
    """

    task: str
    steps: int
    size: tuple[int, int] | None = None
    variant: str = GUIDED
