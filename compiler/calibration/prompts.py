"""List the prompts that calibration runs by default, and read prompts of a file."""

from __future__ import annotations

from pathlib import Path

from diffc.compiler.errors import BuildError

PROMPTS = (
    "a red circle left of a blue square",
    "a photo of a cat asleep on a wooden chair",
    "a small green triangle above a large yellow star",
    "portrait of an old fisherman, oil painting",
    "a large purple square",
    "a city street at night in the rain, neon lights",
    "a blue circle below a small red triangle",
    "a bowl of fruit on a white table, studio light",
    "a small yellow circle right of a green square",
    "snowy mountains behind a lake, early morning",
    "a large red star left of a small purple circle",
    "a robot reading a newspaper, pencil drawing",
    "a green square above a red triangle",
    "macro photo of a bee on a lavender flower",
    "a small blue star",
    "an astronaut riding a horse on the moon",
)
"""The prompts of a calibration without a file: objects, scenes and styles."""


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read prompts, one a line, without the spaces around them; blank lines are skipped.

    Raises `BuildError` for a file that cannot be read or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"{path} cannot be read: {error}", fix="use a UTF-8 text file, one prompt a line") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise BuildError(f"{path} holds no prompts", fix="write one prompt a line")
    return prompts
