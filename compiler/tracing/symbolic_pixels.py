"""Represent the pixels of a given image, so that Pillow's own methods work on it and are recorded.

An image of Pillow computes with its core. This one has Pillow's interface and holds a tensor of 8-bit values, with
which it records what Pillow computes, bit for bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn.functional import pad

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.pillow_filters import FILTERS, UNIT, nearest, weights
from diffc.compiler.tracing.symbolic_tensor import Symbolic

Box = tuple[float, float, float, float]
"""The left, upper, right and lower end of a part of an image."""

LUMA = (19595.0, 38470.0, 7471.0)
"""The parts of red, green and blue in grey, of 65536."""

FLIPS = {PIL.Image.Transpose.FLIP_LEFT_RIGHT: [2], PIL.Image.Transpose.FLIP_TOP_BOTTOM: [1]}


class Pixels:
    """Hold the pixels of an image: whole numbers from 0 to 255 in float32, [1 or 3, height, width]."""

    readonly = 0

    def __init__(self, values: torch.Tensor) -> None:
        self.values = _eight_bits(values)

    @property
    def mode(self) -> str:
        """Name the mode, as Pillow does."""
        return {1: "L", 3: "RGB"}[self.values.shape[0]]

    @property
    def size(self) -> tuple[int, int]:
        """Return the width and the height."""
        return self.values.shape[2], self.values.shape[1]

    @property
    def bands(self) -> int:
        """Return the number of channels."""
        return self.values.shape[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        what = f"Pillow's {name} reads the pixels of an image that only the request knows"
        raise CaptureError(what, fix="use resize, crop, convert or NumPy's arithmetic")

    def pixel_access(self, _readonly: int) -> UnknownPixels:
        """Stand for access to single pixels, which are known only at run time."""
        return UnknownPixels()

    def copy(self) -> Pixels:
        """Return the same pixels for another image: `paste` replaces the tensor of one, and changes no tensor."""
        return Pixels(self.values)

    def resize(self, size: tuple[int, int], resample: int, box: Box) -> Pixels:
        """Resize a part of the image along one axis, then the other, with 8-bit values between."""
        if resample != PIL.Image.Resampling.NEAREST and resample not in FILTERS:
            raise CaptureError(f"Pillow's filter {resample} is not known", fix="resize with another filter")
        values = self.values
        for axis in _order(self.size, size, int(resample), box):
            values = _resized(values, axis, size, resample, box)
        return Pixels(values)

    def crop(self, box: tuple[int, int, int, int]) -> Pixels:
        """Cut out a part; what lies outside of the image is black."""
        left, upper, right, lower = box
        (width, height), values = self.size, self.values
        margins = [*_margins(left, right, width), *_margins(upper, lower, height)]
        inside = values[:, upper + margins[2] : lower - margins[3], left + margins[0] : right - margins[1]]
        return Pixels(pad(inside, margins) if any(margins) else inside)

    def convert(self, mode: str, *_: Any) -> Pixels:
        """Convert between grey and RGB."""
        if mode == self.mode:
            return self
        if mode == "RGB":
            return Pixels(self.values.expand(3, -1, -1))
        if mode == "L":
            red, green, blue = (channel * part for channel, part in zip(self.values.unbind(), LUMA, strict=True))
            return Pixels(torch.floor((red + green + blue + 32768.0) / 65536.0).unsqueeze(0))
        raise CaptureError(f"a given image is converted to Pillow's mode {mode}", fix="convert it to RGB or L")

    def paste(self, source: Any, box: tuple[int, int, int, int], mask: Any = None) -> None:
        """Replace a part of the image, by another image."""
        left, upper, right, lower = box
        (width, height), pixels = self.size, source.values if isinstance(source, Pixels) else None
        if pixels is None or mask is not None:
            raise CaptureError("a colour, or an image with a mask, is pasted", fix="paste an image")
        ends = max(left, 0), max(upper, 0), min(right, width), min(lower, height)
        if ends[0] >= ends[2] or ends[1] >= ends[3]:
            return
        part = pixels[:, ends[1] - upper : ends[3] - upper, ends[0] - left : ends[2] - left]
        rows = torch.cat(
            [self.values[:, ends[1] : ends[3], : ends[0]], part, self.values[:, ends[1] : ends[3], ends[2] :]], 2
        )
        self.values = _eight_bits(torch.cat([self.values[:, : ends[1]], rows, self.values[:, ends[3] :]], 1))

    def transpose(self, method: int) -> Pixels:
        """Flip the image."""
        if method not in FLIPS:
            raise CaptureError("a given image is rotated", fix="use an image as it lies")
        return Pixels(self.values.flip(FLIPS[PIL.Image.Transpose(method)]))


class UnknownPixels:
    """Refuse to read a pixel, which is known only at run time."""

    def __getitem__(self, at: Any) -> Any:
        raise CaptureError(f"the pixel {at} of a given image is read", fix="use NumPy's or Pillow's arithmetic")

    def __setitem__(self, at: Any, colour: Any) -> None:
        raise CaptureError(f"the pixel {at} of a given image is written", fix="use NumPy's or Pillow's arithmetic")


@cache
def _order(source: tuple[int, int], size: tuple[int, int], resample: int, box: Box) -> tuple[int, ...]:
    """Return the axes along which Pillow resizes, in order: it depends on its version, so it is tried on an image."""
    probe = np.random.default_rng(0).integers(0, 256, source[::-1], dtype=np.uint8)
    expected = np.asarray(PIL.Image.fromarray(probe).resize(size, resample, box))
    for order in ((2, 1), (1, 2)):
        values = torch.from_numpy(probe.astype(np.float32))[None]
        for axis in order:
            values = _resized(values, axis, size, resample, box)
        if np.array_equal(values[0].numpy(), expected):
            return order
    what = f"Pillow {PIL.__version__} resizes {source} to {size} in a manner that is not known"
    raise CaptureError(what, fix="use another size, or another version of Pillow")


def _resized(values: torch.Tensor, axis: int, size: tuple[int, int], resample: int, box: Box) -> torch.Tensor:
    source, (start, end), target = values.shape[axis], box[2 - axis :: 2], size[2 - axis]
    if (start, end, target) == (0, source, source):
        return values
    if resample == PIL.Image.Resampling.NEAREST:
        return values.index_select(axis, torch.tensor(nearest(source, start, end, target)))
    return _weighted(values, axis, weights(resample, source, start, end, target))


def _weighted(values: torch.Tensor, axis: int, matrix: np.ndarray[Any, Any]) -> torch.Tensor:
    """Add up values along an axis with integer weights: exact in float64, and rounded to 8 bits."""
    table, exact = torch.from_numpy(matrix), values.to(torch.float64)
    total = exact @ table.T if axis == 2 else table @ exact
    return torch.floor((total + UNIT / 2) / UNIT).clamp(0.0, 255.0).to(torch.float32)


def _margins(start: int, end: int, size: int) -> tuple[int, int]:
    """Return how much of a part of an axis lies before it and after it, also where all of it does."""
    return min(max(-start, 0), end - start), min(max(end - size, 0), end - start)


def _eight_bits(values: torch.Tensor) -> torch.Tensor:
    if isinstance(values, Symbolic):
        values.bounds = (0.0, 255.0)
    return values


def symbolic_images(tensor: torch.Tensor) -> PIL.Image.Image | list[PIL.Image.Image]:
    """Return the image of a batch [batch, 1 or 3, height, width] in [0, 1], or a list of several."""
    images = [image_of(Pixels(row)) for row in torch.round(tensor * 255.0).unbind()]
    return images[0] if len(images) == 1 else images


def image_of(pixels: Pixels) -> PIL.Image.Image:
    """Return an image of Pillow with these pixels."""
    core: Any = pixels
    return PIL.Image.Image()._new(core)


def pixels_of(image: Any) -> Pixels | None:
    """Return the pixels of an image that only the request knows; None for anything else."""
    core = image._im if isinstance(image, PIL.Image.Image) else None
    return core if isinstance(core, Pixels) else None


def constant_pixels(image: PIL.Image.Image) -> Pixels:
    """Return the pixels of an image that is known now, to paste others into them."""
    if image.mode not in ("L", "RGB"):
        raise CaptureError(f"a given image is pasted into one of Pillow's mode {image.mode}", fix="use RGB or L")
    array = np.asarray(image, dtype=np.float32)
    return Pixels(torch.from_numpy(array.reshape(*array.shape[:2], -1)).movedim(-1, 0))
