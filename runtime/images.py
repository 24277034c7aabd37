"""Make pictures of arrays, lay them out in a grid, and save them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffc.runtime.errors import DiffcError, RequestError


def pictures_from_arrays(arrays: NDArray[Any]) -> list[Image.Image]:
    """Round [N, H, W, 1 or 3] in [0, 1] to 8 bits, as diffusers does. Raises `DiffcError` for NaN and infinity."""
    if not np.isfinite(arrays).all():
        raise DiffcError(
            "the picture holds NaN or infinity", fix="use a lower guidance scale, or build at a higher precision"
        )
    rounded = (np.clip(arrays, 0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in rounded]


def arrays_from_pictures(pictures: Sequence[Image.Image], size: tuple[int, int], channels: int) -> NDArray[np.float32]:
    """Scale to a width and height, then convert to colour or grey, as diffusers does: [N, C, H, W] in [0, 1]."""
    mode = {1: "L", 3: "RGB"}[channels]
    scaled = [picture.resize(size, Image.Resampling.LANCZOS).convert(mode) for picture in pictures]
    arrays = np.stack([np.asarray(picture, dtype=np.float32) / 255 for picture in scaled])
    arrays = arrays[..., None] if channels == 1 else arrays
    return np.ascontiguousarray(np.moveaxis(arrays, -1, 1), dtype=np.float32)


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture file, turned upright as its camera says. Raises `RequestError` where it is none."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError(f"{path} is no picture: {error}", fix="give a PNG, JPEG or WebP file") from error


def grid(pictures: Sequence[Image.Image], *, columns: int | None = None) -> Image.Image:
    """Lay pictures of one size out in rows, as near to a square as ``columns`` does not say otherwise."""
    if not pictures:
        raise RequestError("a grid of no pictures")
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    whole = Image.new(pictures[0].mode, (columns * width, math.ceil(len(pictures) / columns) * height))
    for at, picture in enumerate(pictures):
        whole.paste(picture, (at % columns * width, at // columns * height))
    return whole


def save(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture, whole or not at all, in the format of the path's extension.

    Raises `RequestError` for an extension that Pillow does not write, and for a path that cannot be written.
    """
    path = Path(path)
    format_ = check_path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as stream:
            picture.save(stream, format_)
        partial.replace(path)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        raise RequestError(what, where=str(path), fix="give a path in a folder that exists and has room") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


def check_path(path: str | os.PathLike[str]) -> str:
    """Name Pillow's format for the path's extension. Raises `RequestError` where there is none."""
    known = Image.registered_extensions()
    format_ = known.get(Path(path).suffix.lower())
    if format_ is None or format_ not in Image.SAVE:
        raise RequestError(f"{path} names no picture format", where=str(path), fix="use .png, .jpg or .webp")
    return format_
