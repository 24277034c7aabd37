"""Make pictures and films of arrays, lay them out in a grid, and save them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffc.runtime.errors import DiffcError, RequestError
from diffc.runtime.program.program import is_picture

FRAME_MS = 125
"""How long a frame of a film is shown, in milliseconds."""


def pictures_from_arrays(arrays: NDArray[Any]) -> list[Image.Image]:
    """Round [N, H, W, 1 or 3] in [0, 1] to 8 bits, as diffusers does. Raises `DiffcError` for NaN and infinity."""
    if not np.isfinite(arrays).all():
        raise DiffcError(
            "the picture holds NaN or infinity", fix="use a lower guidance scale, or build at a higher precision"
        )
    rounded = (np.clip(arrays, 0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in rounded]


def channels_last(arrays: NDArray[Any]) -> NDArray[np.float32]:
    """Lay pictures and films out as people's tools do; other results stay as they are."""
    moved = np.moveaxis(arrays, -3, -1) if is_picture(arrays.shape) else arrays
    return np.ascontiguousarray(moved, dtype=np.float32)


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


def save(frames: Image.Image | Sequence[Image.Image], path: str | os.PathLike[str]) -> Path:
    """Write a picture or the frames of a film, whole or not at all, in the format of the path's extension.

    Raises `RequestError` for an extension that Pillow does not write, and for a path that cannot be written.
    """
    first, *rest = [frames] if isinstance(frames, Image.Image) else frames
    moving: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": FRAME_MS, "loop": 0} if rest else {}
    format_ = check_path(path, moving=bool(rest))
    return write_whole(path, lambda stream: first.save(stream, format_, **moving))


def save_array(array: NDArray[Any], path: str | os.PathLike[str]) -> Path:
    """Write an array as a .npy file, whole or not at all. Raises `RequestError` where it cannot be written."""
    return write_whole(path, lambda stream: np.save(stream, array, allow_pickle=False))


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Let ``write`` fill a file beside the path that takes its name when all went well. Raises `RequestError`."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as stream:
            write(stream)
        partial.replace(path)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        raise RequestError(what, where=str(path), fix="give a path in a folder that exists and has room") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


def check_path(path: str | os.PathLike[str], *, moving: bool = False) -> str:
    """Name Pillow's format for the path's extension. Raises `RequestError` where there is none, or none for films."""
    known = Image.registered_extensions()
    format_ = known.get(Path(path).suffix.lower())
    if format_ is None or format_ not in (Image.SAVE_ALL if moving else Image.SAVE):
        kind, fix = ("film", "use .gif, .webp or .png") if moving else ("picture", "use .png, .jpg or .webp")
        raise RequestError(f"{path} names no {kind} format", where=str(path), fix=f"{fix}, or .npy for the numbers")
    return format_
