"""Find the inputs whose rows a pipeline's noise follows: an encoder's is for the given images, a sampler's for all.

A program of one image shows no difference. So the pipeline is traced again, from one row of every input to two images:
noise that has one row there is generated for the rows of the request's inputs, and repeated. In a third trace each of
the two images has a generator of its own, which shows what a list of seeds means.

    n0 = noise(image)                one row for each given image; of a list of seeds, those of the first images count
    n1 = noise(image, each=true)     the same, but a list of seeds generates a row for each requested image
    n2 = noise()                     one row for each requested image
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Literal, Op, Program, Ref, Type
from diffc.compiler.tracing.marked_generators import MarkedGenerator
from diffc.compiler.tracing.recorder import GENERATOR

IMAGES = 2
"""How many images the pipeline is traced for."""

SEEDS = tuple(range(0xD1FFC, 0xD1FFC + IMAGES))
"""The seeds of the generators of these images, by which a trace tells them apart."""

Following = tuple[tuple[tuple[Ref, ...], tuple[tuple[str, Literal], ...]], ...]
"""The arguments of each noise of a program, in order: the inputs that its rows follow, and attributes."""

MARKED = tuple(MarkedGenerator(seed) for seed in SEEDS)
"""A generator for each of these images. All traces share them: a component that is handed one is called alike."""


def generators() -> list[MarkedGenerator]:
    """Return a generator for each image of a trace."""
    return list(MARKED)


def with_rows_of_noise(programs: Sequence[Program], retrace: Callable[[Program, bool], Program]) -> list[Program]:
    """Return programs of one request whose noises read the inputs that their rows follow.

    ``retrace`` traces `IMAGES` images from one row of each input as a program does, with a generator for each image
    where its last argument is true. Each program is: noise that has one row for one image may be shared in one of them.
    Raises `CaptureError` where the noise of several images is not that of one, in more rows.
    """
    return [with_operands(program, _rows_followed(program, partial(retrace, program))) for program in programs]


def _rows_followed(program: Program, retrace: Callable[[bool], Program]) -> Following:
    """Return the arguments of each noise of a program, in order; none where all have a row for each image."""
    noises = noises_of(program)
    if not noises or not program.arrays:
        return ()
    if any(rows_of(op) % program.batch for op in noises):
        what = f"{program.name} generates the noise of each of {program.batch} images alone"
        raise CaptureError(what, fix="build with --batch 1: the images are then sampled one by one")
    try:
        several = retrace(False)
    except CaptureError:
        return ()  # the pipeline samples one image of a request: there is no other order
    times = [rows_of(op) // program.batch for op in noises]
    rows = [rows_of(op) for op in noises_of(several)]
    is_alike = list(map(row_of, noises_of(several))) == list(map(row_of, noises))
    if not is_alike or any(row not in (n, n * IMAGES) for row, n in zip(rows, times, strict=True)):
        what = f"{program.name} generates noise of {times} rows for one image, and of {rows} for {IMAGES}"
        raise CaptureError(what, fix="use a pipeline that generates the noise of all its images at once")
    if several.rows < IMAGES * program.rows // program.batch:
        return ()  # the same, where it ignores how many are requested
    is_repeated = [row == n for row, n in zip(rows, times, strict=True)]
    if not any(is_repeated):
        return ()
    return tuple(
        (_followed(several, op), (("each", True),) if each else ()) if repeated else ((), ())
        for op, repeated, each in zip(noises_of(several), is_repeated, drawn_by_each(retrace, is_repeated), strict=True)
    )


def with_operands(program: Program, following: Following) -> Program:
    """Return the program with arguments for each of its noises, in order; without any as it is."""
    if not following:
        return program
    arguments, ops = iter(following), list[Op]()
    for op in program.ops:
        args, attrs = next(arguments) if op.operator == "noise" else (op.args, ())
        ops.append(replace(op, args=args, attrs=(*op.attrs, *attrs)))
    return replace(program, ops=tuple(ops))


def drawn_by_each(retrace: Callable[[bool], Program], is_repeated: Sequence[bool]) -> list[bool]:
    """Return for each noise whether the generators of all images draw it, where each image has one.

    A noise of one row is drawn by the first generator, or by all in turn; one of a row for each image by all. What a
    pipeline draws without a generator is drawn at once.
    """
    try:
        order = [op.attr(GENERATOR) for op in noises_of(retrace(True))]
    except CaptureError:
        return [True] * len(is_repeated)  # the pipeline takes one generator only: each seed samples its image alone
    each, at = list[bool](), 0
    for repeated in is_repeated:
        is_alone = order[at : at + 1] == [None] or (repeated and order[at + 1 : at + 2] != [SEEDS[1]])
        count = 1 if is_alone else IMAGES
        if order[at : at + count] not in ([None], list(SEEDS[:count])):
            raise CaptureError(f"several generators draw in the order {order}", fix="use one that draws image by image")
        each.append(count > 1)
        at += count
    return each


def _followed(program: Program, noise: Op) -> tuple[Ref, ...]:
    """Return the texts and arrays of the request that the noise is first combined with; all arrays where none is."""
    origins = {item.name: frozenset({item.name}) for item in (*program.texts, *program.arrays)}
    noisy = {noise.results[0].name}
    for op in program.ops:
        origin = frozenset[str]().union(*(origins.get(name, frozenset()) for name in op.reads()))
        if not noisy.isdisjoint(op.reads()):
            if origin:
                return tuple(Ref(item.name) for item in program.inputs if item.name in origin)
            noisy |= {value.name for value in op.results}
        origins |= {value.name: origin for value in op.results}
    return tuple(Ref(item.name) for item in program.arrays)


def noises_of(program: Program) -> list[Op]:
    """List the noises of a program, in order."""
    return [op for op in program.ops if op.operator == "noise"]


def row_of(op: Op) -> Type:
    """Return the type of each row of a noise."""
    type_ = op.results[0].type
    return Type(type_.dtype, type_.shape[1:])


def rows_of(op: Op) -> int:
    """Return the number of rows of a noise."""
    return op.results[0].type.fixed[0]
