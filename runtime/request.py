"""Turn what a caller asks for into what a program reads: texts, scalars and normal numbers for every picture."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL.Image import Image

from diffc.runtime.bundle.tokenizer import check_text
from diffc.runtime.errors import RequestError
from diffc.runtime.images import arrays_from_pictures
from diffc.runtime.program.program import Input, Program
from diffc.runtime.rng import Generator

Texts = str | Sequence[str]
Seed = int | Sequence[int]


@dataclass(frozen=True)
class Request:
    """Hold the inputs of ``count`` pictures: texts, arrays and noises [count, times, …] have one entry for each."""

    program: Program
    texts: Mapping[str, Sequence[str]]
    arrays: Mapping[str, NDArray[np.float32]]
    scalars: Mapping[str, float]
    noises: Mapping[str, NDArray[np.float32]]
    count: int
    seed: Seed

    def chunk(self, start: int) -> dict[str, Any]:
        """Give the inputs of one execution from picture ``start`` on, the last one repeated to fill the batch."""
        rows = np.minimum(np.arange(start, start + self.program.batch), self.count - 1)
        texts = {name: [texts[row] for row in rows] for name, texts in self.texts.items()}
        noises = {name: drawn[rows].swapaxes(0, 1).reshape(-1, *drawn.shape[2:]) for name, drawn in self.noises.items()}
        return texts | {name: each[rows] for name, each in self.arrays.items()} | noises


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
    """Check a request and choose its program. Raises `RequestError` for what the bundle cannot serve."""
    if type(num_images) is not int or num_images < 1:
        raise RequestError(f"num_images is {num_images!r}", fix="use 1 or more")
    known = {item.name: item.type.dtype for each in programs.values() for item in each.inputs}
    for name, value in inputs.items():
        if name not in known and not (value is None or isinstance(value, str) and value == ""):
            raise RequestError(
                f"no program of this bundle takes {name}", fix=f"it takes {', '.join(known) or 'nothing'}"
            )
    scalars = {n: _scalar(n, v) for n, v in inputs.items() if known.get(n) == "scalar" and v is not None}
    prompts = {n: _texts(n, v) for n, v in inputs.items() if known.get(n) == "text" and v is not None}
    chosen, used_scalars = _choose(_candidates(programs, program, size), scalars, prompts.keys())
    given = {item.name: _rows(item, inputs.get(item.name)) for item in chosen.arrays}
    counts = [len(texts) for texts in prompts.values()] + [len(rows) for rows in given.values()]
    count = max(counts, default=1)
    texts = {item.name: _spread(item.name, prompts.get(item.name, [""]), count, num_images) for item in chosen.texts}
    arrays = {name: _repeated(name, rows, count, num_images) for name, rows in given.items()}
    count *= num_images
    used: Seed = secrets.randbits(32) if seed is None else seed
    return Request(chosen, texts, arrays, used_scalars, _noises(chosen, count, used, latents), count, used)


def _candidates(programs: Mapping[str, Program], name: str | None, size: Any) -> list[Program]:
    """List the programs that a request may mean: of all, or the one that is named, those that draw the size."""
    if name is not None and name not in programs:
        raise RequestError(f"the bundle has no program {name}", fix=f"use one of {', '.join(programs)}")
    named = list(programs.values()) if name is None else [programs[name]]
    wanted = None if size is None else _size(size)
    found = [program for program in named if wanted in (None, program.size)]
    if not found:
        sizes = dict.fromkeys("{}x{}".format(*program.size) for program in named if program.size)
        what = "{} draws no {}x{}".format(name or "this bundle", *size)
        fix = f"it draws {', '.join(sizes)}; diffc build --size takes others" if sizes else "leave the size out"
        raise RequestError(what, fix=fix)
    return found


def _size(value: Any) -> tuple[int, int]:
    if not isinstance(value, tuple | list) or [type(edge) for edge in value] != [int, int]:
        raise RequestError(f"size is {value!r}", fix="give a width and a height in pixels, such as (512, 512)")
    return value[0], value[1]


def _choose(
    candidates: Sequence[Program], given: Mapping[str, float], texts: Collection[str]
) -> tuple[Program, Mapping[str, float]]:
    """Choose the first program that serves the request; those that read the texts that are given come first."""
    defaults = {key: value for key, value in candidates[0].scalars.items() if value is not None}
    for program in sorted(
        candidates, key=lambda each: len({item.name for item in each.texts}.symmetric_difference(texts))
    ):
        scalars = {key: value for key, value in (defaults | dict(given)).items() if key in program.scalars}
        missing = [key for key in program.scalars if key not in scalars]
        if given.keys() <= scalars.keys() and all(guard.holds(scalars) for guard in program.guards) and not missing:
            return program, scalars
    asked = ", ".join(f"{key}={value}" for key, value in (defaults | dict(given)).items())
    takes = "; ".join(f"{p.name} takes {', '.join(map(str, p.guards)) or ', '.join(p.scalars)}" for p in candidates)
    raise RequestError(
        f"no program of this bundle serves {asked or 'this request'}", where=takes, fix="change the value"
    )


def _scalar(name: str, value: Any) -> float:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise RequestError(f"{name} is {value!r}", fix="give a finite number")
    return float(value)


def _texts(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts:
        raise RequestError(f"{name} is {value!r}", fix="give a text, or a list of at least one")
    for text in texts:
        check_text(text)
    return list(texts)


def _spread(name: str, texts: Sequence[str], count: int, num_images: int) -> Sequence[str]:
    if len(texts) not in (1, count):
        raise RequestError(f"{name} has {len(texts)} texts, another has {count}", fix="give as many, or one for all")
    each = list(texts) * count if len(texts) < count else texts
    return [text for text in each for _ in range(num_images)]


def _rows(item: Input, value: Any) -> NDArray[np.float32]:
    return _picture(item.name, value, item.type.shape) if item.is_picture else _array(item.name, value, item.type.shape)


def _array(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Turn numbers for one picture, or for each of several, into rows."""
    fix = f"give numbers of shape {list(shape[1:])}, or an array of such"
    if value is None:
        raise RequestError(f"this program needs {name}", fix=fix)
    array = np.asarray(value)
    rows = array[None] if array.ndim == len(shape) - 1 else array
    if array.dtype.kind not in "fiu" or rows.shape[1:] != shape[1:] or rows.ndim != len(shape) or not len(rows):
        raise RequestError(f"{name} is {array.dtype}{list(array.shape)}", fix=fix)
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise RequestError(f"{name} holds NaN or infinity", fix="give finite numbers that float32 can hold")
    return rows


def _picture(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Turn a picture, or a list or array of them, into rows [N, C, H, W] in [0, 1] of the program's size."""
    _, channels, height, width = shape
    if value is None:
        raise RequestError(f"this program needs the picture {name}", fix=f"give one of {width}x{height} pixels")
    if isinstance(value, Image) or (isinstance(value, list) and all(isinstance(each, Image) for each in value)):
        pictures = value if isinstance(value, list) else [value]
        return arrays_from_pictures(pictures, (width, height), channels)
    array = np.asarray(value)
    array = array[None] if array.ndim == 3 else array
    if array.dtype.kind != "f" or array.shape[1:] != (height, width, channels) or not len(array):
        what = f"the picture {name} is {array.dtype}{list(array.shape)}"
        raise RequestError(what, fix=f"give a PIL image, or numbers in [0, 1] of shape {[height, width, channels]}")
    if not (array.min() >= 0 and array.max() <= 1):
        raise RequestError(f"the picture {name} leaves [0, 1]", fix="divide numbers up to 255 by 255")
    rows: NDArray[np.float32] = np.ascontiguousarray(np.moveaxis(array, -1, 1), dtype=np.float32)
    return rows


def _repeated(name: str, rows: NDArray[np.float32], count: int, num_images: int) -> NDArray[np.float32]:
    if len(rows) not in (1, count):
        raise RequestError(f"{name} has rows for {len(rows)} of {count} pictures", fix="give as many, or one for all")
    return np.repeat(np.broadcast_to(rows, (count, *rows.shape[1:])), num_images, axis=0)


def _noises(program: Program, count: int, seed: Seed, latents: ArrayLike | None) -> Mapping[str, NDArray[np.float32]]:
    """Draw rows [count, times, …] of each noise: an execution reads ``times`` numbers for each of its pictures."""
    drawn = {noise.name: (noise.type.shape[0] // program.batch, *noise.type.shape[1:]) for noise in program.noises}
    given, first = dict[str, NDArray[np.float32]](), next(iter(drawn), None)
    if latents is not None:
        if first is None:
            raise RequestError("this program draws no noise that latents could replace", fix="leave latents out")
        times, *shape = drawn[first]
        given[first] = _by_picture(_latents(latents, (times * count, *shape)), count)
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        generators, rows = [Generator(each) for each in seed], 1
        if len(generators) != count:
            raise RequestError(f"{len(generators)} seeds for {count} pictures", fix="give one seed, or one for each")
    else:
        generators, rows = [Generator(seed)], count
    if rows != program.batch and any(times > 1 for times, *_ in drawn.values()):
        what = f"{program.name} draws several rows of noise for a picture, and in which order for {rows} is not known"
        raise RequestError(what, fix=f"ask for {program.batch} with one seed, or build with --batch {rows}")
    for name, (times, *shape) in drawn.items():
        if name not in given:
            each = [_by_picture(generator.randn((times * rows, *shape)), rows) for generator in generators]
            given[name] = np.concatenate(each)
    return given


def _by_picture(drawn: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Turn rows for all pictures, several times, [times * count, …], into rows for each picture."""
    return drawn.reshape(-1, count, *drawn.shape[1:]).swapaxes(0, 1)


def _latents(latents: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    given = np.asarray(latents)
    if given.dtype.kind not in "fiu" or given.shape not in (shape, (1, *shape[1:])):
        fix = f"give numbers of shape {list(shape)}"
        raise RequestError(f"the latents are {given.dtype}{list(given.shape)}", fix=fix)
    if not np.isfinite(given).all():
        raise RequestError("the latents hold NaN or infinity", fix="give finite numbers")
    return np.broadcast_to(given, shape).astype(np.float32)
