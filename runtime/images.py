"""Convert between arrays and images, lay images out in a grid, and save images and videos."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffc.runtime.errors import DiffcError, RequestError
from diffc.runtime.output_file import write_complete
from diffc.runtime.program.program import is_image

FRAME_MS = 125
"""Milliseconds for which a video shows a frame."""

VIDEO_SUFFIXES = (".gif", ".webp", ".png")
IMAGE_SUFFIXES = (".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff")
"""The usual ones of the formats that Pillow writes; any other of these is accepted too."""

FOR_GREY = ("1", "L", "LA", "La")
FOR_COLOUR = ("RGB", "RGBX", "RGBA", "RGBa", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")
"""Pillow's modes of 8 bits and fewer, as grey and as colour."""

STRAIGHT = {"La": "LA", "RGBa": "RGBA", "P": "RGBA"}
"""Modes that lose their alpha in two steps: premultiplied alpha, and palettes, whose entries may have one."""

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def images_from_arrays(arrays: NDArray[Any]) -> list[Image.Image]:
    """Round [N, H, W, 1 or 3] in [0, 1] to 8 bits, as diffusers does. Raises `DiffcError` for NaN and infinity."""
    check_finite(arrays)
    rounded = (np.clip(arrays, 0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in rounded]


def check_finite(arrays: NDArray[Any]) -> None:
    """Raise `DiffcError` where a result holds NaN or infinity: it is no image, and no video and no audio either."""
    if not np.isfinite(arrays).all():
        what, fix = "the result holds NaN or infinity", "use a lower guidance scale, or build at a higher precision"
        raise DiffcError(what, fix=fix)


def channels_last(arrays: NDArray[Any]) -> NDArray[np.float32]:
    """Move the channels of images [N, C, H, W] and videos [N, F, C, H, W] to the end; other shapes stay as they are."""
    moved = np.moveaxis(arrays, -3, -1) if is_image(arrays.shape) else arrays
    return np.ascontiguousarray(moved, dtype=np.float32)


def arrays_from_images(images: Sequence[Image.Image], size: tuple[int, int], channels: int) -> NDArray[np.float32]:
    """Scale images to a width and height and convert them to RGB or grey, as diffusers does: [N, C, H, W] in [0, 1].

    Raises `RequestError` for an image whose mode does not tell the range of its values.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    if any(0 in image.size for image in images):
        raise RequestError("an image has no pixels", fix="pass one of at least a pixel")
    scaled = [eight_bits(image).resize(size, Image.Resampling.LANCZOS).convert(mode) for image in images]
    arrays = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in scaled])
    arrays = arrays[..., None] if channels == 1 else arrays
    return np.ascontiguousarray(np.moveaxis(arrays, -1, 1), dtype=np.float32)


def eight_bits(image: Image.Image) -> Image.Image:
    """Return the image in 8-bit grey or RGB, without alpha: what may be scaled. 16 bits are divided by 65535.

    Raises `RequestError` for 32-bit integers, for floating-point values outside [0, 1], and for unknown modes.
    """
    fix = "convert it to 8 or 16 bits, or pass an array in [0, 1]"
    if image.mode in FOR_GREY or image.mode in FOR_COLOUR:
        to = "L" if image.mode in FOR_GREY else "RGB"
        straight = image.convert(STRAIGHT[image.mode]) if image.mode in STRAIGHT else image
        return straight if straight.mode == to else straight.convert(to)
    if image.mode in SIXTEEN_BITS:
        return _grey(np.asarray(image).astype(np.float32) / np.float32(65535))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            what = f"an image of floating-point values from {values.min()} to {values.max()}, not from 0 to 1"
            raise RequestError(what, fix=fix)
        return _grey(values)
    what = "32-bit integers" if image.mode == "I" else f"the mode {image.mode}"
    raise RequestError(f"an image of {what}, whose range is not known", fix=fix)


def _grey(values: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file, rotated as its EXIF orientation says. Raises `RequestError` for any other file."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise RequestError(f"there is no file {path}", fix="give a PNG, JPEG or WebP file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # a broken PNG is a SyntaxError
        raise RequestError(f"{path} is not an image: {error}", fix="give a PNG, JPEG or WebP file") from error


def grid(images: Sequence[Image.Image], *, columns: int | None = None) -> Image.Image:
    """Combine images of one size into one, in rows of ``columns``; by default the grid is nearly square."""
    if not images:
        raise RequestError("a grid of no images")
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    combined = Image.new(images[0].mode, (columns * width, math.ceil(len(images) / columns) * height))
    for at, image in enumerate(images):
        combined.paste(image, (at % columns * width, at // columns * height))
    return combined


def save(frames: Image.Image | Sequence[Image.Image], path: str | os.PathLike[str]) -> Path:
    """Write an image or the frames of a video, completely or not at all, in the format of the path's extension.

    Raises `RequestError` for an extension that Pillow does not write, and for a path that cannot be written.
    """
    first, *rest = [frames] if isinstance(frames, Image.Image) else frames
    video: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": FRAME_MS, "loop": 0} if rest else {}
    format_ = check_path(path, is_video=bool(rest))
    return write_complete(path, lambda stream: first.save(stream, format_, **video))


def save_array(array: NDArray[Any], path: str | os.PathLike[str]) -> Path:
    """Write an array as a .npy file, completely or not at all. Raises `RequestError` where it cannot be written."""
    return write_complete(path, lambda stream: np.save(stream, array, allow_pickle=False))


def check_path(path: str | os.PathLike[str], *, is_video: bool = False) -> str:
    """Return Pillow's format for the path's extension. Raises `RequestError` where Pillow cannot write it."""
    format_ = Image.registered_extensions().get(Path(path).suffix.lower())
    if format_ is None or format_ not in (Image.SAVE_ALL if is_video else Image.SAVE):
        kind, suffixes = ("a video", VIDEO_SUFFIXES) if is_video else ("an image", IMAGE_SUFFIXES)
        what = f"{path} has no extension of {kind} format"
        raise RequestError(what, where=str(path), fix=f"use {', '.join(suffixes)}, or .npy for the array")
    return format_
