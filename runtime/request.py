"""Check the arguments of a call, choose its program, and prepare its inputs: texts, scalars, arrays and noise."""

from __future__ import annotations

import math
import os
import secrets
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL.Image import Image

from diffc.runtime.bundle.tokenizer import check_text
from diffc.runtime.errors import DiffcWarning, RequestError
from diffc.runtime.images import arrays_from_images, open_image
from diffc.runtime.noise import sampled
from diffc.runtime.program.program import Input, Op, Program
from diffc.runtime.rng import Generator

Texts = str | Sequence[str]
Seed = int | Sequence[int]

REPEAT = "repeat each row in the lists that you pass, with num_images=1"

MOST = 10_000
"""Images of one request for each text, all of whose noise is in memory."""


@dataclass(frozen=True)
class Request:
    """Hold the inputs of ``count`` images: texts, arrays and noises [count, times, …] have one entry per image."""

    program: Program
    texts: Mapping[str, Sequence[str]]
    arrays: Mapping[str, NDArray[np.float32]]
    scalars: Mapping[str, float]
    noises: Mapping[str, NDArray[Any]]
    count: int
    seed: Seed

    def chunk(self, start: int) -> dict[str, Any]:
        """Return the inputs of one execution, from image ``start`` on; the last image repeats to fill the batch."""
        rows = np.minimum(np.arange(start, start + self.program.batch), self.count - 1)
        texts = {name: [texts[row] for row in rows] for name, texts in self.texts.items()}
        noises = {name: noise[rows].swapaxes(0, 1).reshape(-1, *noise.shape[2:]) for name, noise in self.noises.items()}
        return texts | {name: array[rows] for name, array in self.arrays.items()} | noises


def make_request(
    programs: Mapping[str, Program],
    *,
    program: str | None,
    size: Any = None,
    inputs: Mapping[str, Any],
    num_images: int,
    seed: Seed | None,
    latents: ArrayLike | None,
) -> Request:
    """Return the checked request. Raises `RequestError` where no program of the bundle serves it."""
    if not _is_integer(num_images) or not 1 <= num_images <= MOST:
        raise RequestError(f"num_images is {num_images!r}", fix=f"use 1 to {MOST}, and further requests for more")
    dtypes = {item.name: item.type.dtype for each in programs.values() for item in each.inputs}
    for name, value in inputs.items():
        if name not in dtypes and not (value is None or isinstance(value, str) and value == ""):
            raise RequestError(
                f"no program of this bundle takes {name}", fix=f"it takes {', '.join(dtypes) or 'nothing'}"
            )
    scalars = {n: _scalar(n, v) for n, v in inputs.items() if dtypes.get(n) == "scalar" and v is not None}
    prompts = {n: _texts(n, v) for n, v in inputs.items() if dtypes.get(n) == "text" and v is not None}
    serving, scalars = _choose(_candidates(programs, program, size), scalars, prompts.keys())
    _warn_of_unread(serving, inputs, scalars)
    rows = {item.name: _rows(item, inputs.get(item.name)) for item in serving.arrays}
    num_images = int(num_images)
    counts = [len(texts) for texts in prompts.values()] + [len(array) for array in rows.values()]
    count = max(counts, default=1)
    texts = {item.name: _spread(item.name, prompts.get(item.name, [""]), count, num_images) for item in serving.texts}
    for item in serving.arrays:
        if item.is_image and len(rows[item.name]) > 1 and num_images > 1:
            what = f"{num_images} images for each of {len(rows[item.name])} rows of {item.name}"
            raise RequestError(what, fix=REPEAT)
    arrays = {name: _repeated(name, array, count, num_images) for name, array in rows.items()}
    seed = secrets.randbits(32) if seed is None else seed
    row_counts = {name: len(texts) for name, texts in prompts.items()} | {
        name: len(array) for name, array in rows.items()
    }
    noises = _noises(serving, row_counts, count * num_images, seed, latents)
    return Request(serving, texts, arrays, scalars, noises, count * num_images, seed)


def _candidates(programs: Mapping[str, Program], name: str | None, size: Any) -> list[Program]:
    """List the programs of the requested name and size; without a name or size, those of any."""
    if name is not None and name not in programs:
        raise RequestError(f"the bundle has no program {name}", fix=f"use one of {', '.join(programs)}")
    named = list(programs.values()) if name is None else [programs[name]]
    width_height = None if size is None else _size(size)
    candidates = [program for program in named if width_height in (None, program.size)]
    if not candidates:
        sizes = dict.fromkeys("{}x{}".format(*program.size) for program in named if program.size)
        what = "{} has no size {}x{}".format(name or "this bundle", *_size(size))
        fix = f"it has {', '.join(sizes)}; diffc build --size takes others" if sizes else "leave the size out"
        raise RequestError(what, fix=fix)
    return candidates


def _size(value: Any) -> tuple[int, int]:
    """Return a width and a height, or an edge of a square as both."""
    edges = (value, value) if _is_integer(value) else value
    if not isinstance(edges, tuple | list) or len(edges) != 2 or not all(map(_is_integer, edges)):
        raise RequestError(f"size is {value!r}", fix="use a width and a height in pixels, such as (512, 512), or 512")
    return int(edges[0]), int(edges[1])


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _choose(
    candidates: Sequence[Program], scalars: Mapping[str, float], texts: Collection[str]
) -> tuple[Program, dict[str, float]]:
    """Return the first program whose scalars and guards allow the request, and its scalars with their defaults.

    Programs that read exactly the texts of the request are tried first.
    """
    scalars_of = [program.scalars.items() for program in reversed(candidates)]  # the first default of a scalar counts
    defaults = {key: value for items in scalars_of for key, value in items if value is not None}
    requested = defaults | dict(scalars)
    for program in sorted(
        candidates, key=lambda each: len({item.name for item in each.texts}.symmetric_difference(texts))
    ):
        used = {key: value for key, value in requested.items() if key in program.scalars}
        missing = [key for key in program.scalars if key not in used]
        if scalars.keys() <= used.keys() and all(guard.holds(used) for guard in program.guards) and not missing:
            return program, used
    values = ", ".join(f"{key}={value}" for key, value in requested.items())
    takes = "; ".join(f"{p.name} takes {', '.join(map(str, p.guards)) or ', '.join(p.scalars)}" for p in candidates)
    raise RequestError(
        f"no program of this bundle serves {values or 'this request'}", where=takes, fix="change the value"
    )


def _warn_of_unread(serving: Program, inputs: Mapping[str, Any], scalars: Mapping[str, float]) -> None:
    """Warn of each input of a request that the program which serves it does not read; empty texts are none."""
    reads = {item.name for item in serving.inputs}
    for name, value in inputs.items():
        parts = value if isinstance(value, list | tuple) else [value]
        is_empty = all(part is None or (isinstance(part, str) and not part) for part in parts)
        if name not in reads and not is_empty:
            at = ", ".join(f"{key}={number:g}" for key, number in scalars.items())
            what = f"{name} has no effect: {serving.name}{f' (at {at})' if at else ''} does not read it"
            warnings.warn(what, DiffcWarning, stacklevel=5)


def _scalar(name: str, value: Any) -> float:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise RequestError(f"{name} is {value!r}", fix="use a finite number")
    return float(value)


def _texts(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts:
        raise RequestError(f"{name} is {value!r}", fix="use a text, or a list of at least one")
    for text in texts:
        check_text(text)
    return list(texts)


def _spread(name: str, texts: Sequence[str], count: int, num_images: int) -> Sequence[str]:
    if len(texts) not in (1, count):
        raise RequestError(f"{name} has {len(texts)} texts, another has {count}", fix="use as many, or one for all")
    repeated = list(texts) * count if len(texts) < count else texts
    return [text for text in repeated for _ in range(num_images)]


def _rows(item: Input, value: Any) -> NDArray[np.float32]:
    return _image(item.name, value, item.type.fixed) if item.is_image else _array(item.name, value, item.type.fixed)


def _array(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an array for one image, or one for several, as float32 of ``shape`` but for the first dimension."""
    fix = f"use an array of shape {list(shape[1:])}, or one with a row of it for each image"
    if value is None:
        raise RequestError(f"this program needs {name}", fix=fix)
    array = _as_array(name, value, fix)
    rows = array[None] if array.ndim == len(shape) - 1 else array
    if array.dtype.kind not in "fiu" or rows.shape[1:] != shape[1:] or rows.ndim != len(shape) or not len(rows):
        raise RequestError(f"{name} is {array.dtype}{list(array.shape)}", fix=fix)
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise RequestError(f"{name} holds NaN or infinity", fix="use finite values that float32 can hold")
    return rows


def _image(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an image, or a list or array of images, as float32[N, C, H, W] in [0, 1] of the program's size."""
    _, channels, height, width = shape
    if value is None:
        raise RequestError(f"this program needs the image {name}", fix=f"use one of {width}x{height} pixels")
    images = value if isinstance(value, list | tuple) else [value]
    fix = f"use an image, a path, or an array in [0, 1] of shape {[height, width, channels]}"
    are_files = [isinstance(each, Image | str | os.PathLike) for each in images]
    if any(are_files):
        if not all(are_files):
            raise RequestError(f"the list {name} mixes images or paths with arrays", fix=fix)
        opened = [each if isinstance(each, Image) else open_image(each) for each in images]
        return arrays_from_images(opened, (width, height), channels)
    array = _as_array(name, value, fix)
    array = array[None] if array.ndim == 3 else array
    if array.dtype.kind != "f" or array.shape[1:] != (height, width, channels) or not len(array):
        raise RequestError(f"the image {name} is {array.dtype}{list(array.shape)}", fix=fix)
    if not (array.min() >= 0 and array.max() <= 1):
        raise RequestError(f"the image {name} leaves [0, 1]", fix="divide values up to 255 by 255")
    rows: NDArray[np.float32] = np.ascontiguousarray(np.moveaxis(array, -1, 1), dtype=np.float32)
    return rows


def _as_array(name: str, value: Any, fix: str) -> NDArray[Any]:
    """Return a value as an array. Raises `RequestError` for lists of different shapes."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise RequestError(f"{name} is a list of different shapes", fix=fix) from error


def _repeated(name: str, rows: NDArray[np.float32], count: int, num_images: int) -> NDArray[np.float32]:
    if len(rows) not in (1, count):
        raise RequestError(f"{name} has rows for {len(rows)} of {count} images", fix="use as many, or one for all")
    return np.repeat(np.broadcast_to(rows, (count, *rows.shape[1:])), num_images, axis=0)


def _noises(
    program: Program, row_counts: Mapping[str, int], count: int, seed: Seed, latents: ArrayLike | None
) -> Mapping[str, NDArray[Any]]:
    """Generate each noise of the program, [count, times, …]: an execution reads ``times`` rows per image.

    ``row_counts`` are the numbers of rows of the texts and arrays of the request, which some noises follow.
    """
    operations = [op for op in program.ops if op.operator == "noise"]
    noises = dict[str, NDArray[Any]]()
    if latents is not None:
        noises |= _replaced(program, operations, latents, count)
    generators = _generators(seed, count)
    separate = [generator.separate() for generator in generators]
    is_list = isinstance(seed, Sequence)
    for op in operations:
        times, *shape = _rows_and_shape(program, op)
        rows = max((row_counts.get(name, 1) for name in op.operands()), default=count)
        if 1 < rows < count:
            what = f"{count} images of {rows} rows of {' and '.join(op.operands())}, with noise for each row"
            raise RequestError(what, fix=REPEAT)
        sources = separate if op.attr("separate", False) else generators
        used = sources if op.attr("each", False) else sources[:rows]
        at_once = 1 if is_list else rows
        if times > 1 and at_once != program.batch:
            what = f"{program.name} has several rows of noise per image, and in which order for {at_once} is not known"
            raise RequestError(what, fix=f"request {program.batch} with one seed, or build with --batch {at_once}")
        if op.results[0].name not in noises:
            parts = [_by_image(sampled(op, generator, (times * at_once, *shape)), at_once) for generator in used]
            noises[op.results[0].name] = np.broadcast_to(np.concatenate(parts), (count, times, *shape))
    return noises


def _generators(seed: Seed, count: int) -> list[Generator]:
    """Return the generator of one seed, or one for each image."""
    if not isinstance(seed, Sequence) or isinstance(seed, str):
        return [Generator(seed)]
    if len(seed) != count:
        raise RequestError(f"{len(seed)} seeds for {count} images", fix="use one seed, or one for each")
    return [Generator(each) for each in seed]


def _replaced(
    program: Program, operations: Sequence[Op], latents: ArrayLike, count: int
) -> Mapping[str, NDArray[np.float32]]:
    """Return the latents in the place of the first normal noise of the seed that has a row for each image."""
    first = next(
        (op for op in operations if not op.args and not {"kind", "separate", "terms"} & dict(op.attrs).keys()), None
    )
    if first is None:
        raise RequestError("this program has no noise that latents could replace", fix="leave latents out")
    times, *shape = _rows_and_shape(program, first)
    return {first.results[0].name: _by_image(_latents(latents, (times * count, *shape)), count)}


def _rows_and_shape(program: Program, op: Op) -> tuple[int, ...]:
    """Return how many rows of a noise an image reads, and their shape."""
    rows, *shape = op.results[0].type.fixed
    return rows // program.batch, *shape


def _by_image(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Return rows [times * count, …], those of all images in turn, as [count, times, …]."""
    return rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)


def _latents(latents: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = _as_array("latents", latents, f"use an array of shape {list(shape)}")
    if array.dtype.kind not in "fiu" or array.shape not in (shape, (1, *shape[1:])):
        fix = f"use an array of shape {list(shape)}"
        raise RequestError(f"the latents are {array.dtype}{list(array.shape)}", fix=fix)
    if not np.isfinite(array).all():
        raise RequestError("the latents hold NaN or infinity", fix="use finite values")
    return np.broadcast_to(array, shape).astype(np.float32)
