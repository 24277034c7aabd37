"""Find the noise that all images of a text share, in pipelines of texts alone, and refuse what is shared otherwise.

A program of one image shows no difference. So the pipeline is recorded again, for several texts and several images.

    n0 = noise()                            one row for each image
    n1 = noise(prompt, negative_prompt)     one row for each text, which all its images share
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Program, Ref
from diffc.compiler.tracing.crossed_rows import moves_last_image
from diffc.compiler.tracing.noise_rows import (
    IMAGES,
    Following,
    drawn_by_each,
    noises_of,
    row_of,
    rows_of,
    with_operands,
)

Record = Callable[[Program, int, int, bool], Program]
"""Records the pipeline as for a program, of so many texts and images of each, with a generator for each or with one."""

OWN = {(IMAGES, IMAGES), (IMAGES, None), (None, IMAGES), (None, None)}
"""How many times the rows of one image noise of each image has: for several images of a text, and for several texts."""

SHARED = (1, IMAGES)
"""How many times the rows of one image the noise has that all images of a text share."""


def with_noise_of_texts(programs: Sequence[Program], record: Record) -> list[Program]:
    """Return programs of one request, whose noises read the texts where they have one row for all images of a text.

    A pipeline that does not sample several images at once, or refuses to, has none that share noise. Raises
    `CaptureError` where images share noise otherwise.
    """
    return [with_operands(program, _followed_texts(program, partial(record, program))) for program in programs]


def _followed_texts(program: Program, record: Callable[[int, int, bool], Program]) -> Following:
    """Return the arguments of each noise of a program, in order; none where all have a row for each image."""
    if not program.texts or not noises_of(program):
        return ()
    one = record(program.batch, 1, False) if program.lengths else program
    both = _several(one, record, IMAGES, IMAGES)
    if both is not None and set(_factors(one, both)) == {IMAGES * IMAGES}:
        _need_noise_of_every_image(one, both, IMAGES * IMAGES)
        return ()
    by_image, by_text = _several(one, record, 1, IMAGES), _several(one, record, IMAGES, 1)
    pairs = [*zip(_factors(one, by_image), _factors(one, by_text), strict=True)]
    is_shared = [pair == SHARED for pair in pairs]
    if not {*pairs} <= {*OWN, SHARED}:
        raise _refusal(program)
    for several in (recorded for recorded in (by_image, by_text) if recorded is not None):
        _need_noise_of_every_image(one, several, IMAGES)
    if not any(is_shared):
        return ()
    texts = tuple(Ref(item.name) for item in program.texts)
    each = drawn_by_each(lambda one_each: record(1, IMAGES, one_each), is_shared)
    return tuple(
        (texts, (("each", True),) if by_each else ()) if shared else ((), ())
        for shared, by_each in zip(is_shared, each, strict=True)
    )


def _several(first: Program, record: Callable[[int, int, bool], Program], texts: int, images: int) -> Program | None:
    """Record several images; return None where the pipeline samples fewer than that, or refuses to."""
    try:
        program = record(texts, images, False)
    except CaptureError:
        return None
    return program if program.rows * first.batch == first.rows * texts * images else None


def _factors(first: Program, several: Program | None) -> list[float | None]:
    """Return for each noise how many times the rows of one image it has in a program of several, if there is one."""
    noises = noises_of(first)
    if several is None:
        return [None] * len(noises)
    if [*map(row_of, noises_of(several))] != [*map(row_of, noises)]:
        raise _refusal(first)
    pairs = zip(noises_of(several), noises, strict=True)
    return [rows_of(noise) * first.batch / rows_of(alone) for noise, alone in pairs]


def _need_noise_of_every_image(first: Program, several: Program, images: int) -> None:
    """Raise `CaptureError` where the last of several images does not depend on noise as one image does."""
    pairs = zip(moves_last_image(first, first.batch), moves_last_image(several, images), strict=True)
    if any(alone and not with_others for alone, with_others in pairs):
        raise _refusal(first)


def _refusal(program: Program) -> CaptureError:
    what = f"{program.name} generates other noise for several images than for one: images share some of it"
    return CaptureError(what, fix="generate noise of the shape of all latents, a row for each image")
