"""Compute with Pillow's methods on symbolic pixels, bit for bit as Pillow does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageFilter, ImageOps
from PIL.Image import Resampling, Transpose

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.image_functions import recorded_images
from diffc.compiler.tracing.symbolic_pixels import constant_pixels, image_of, pixels_of, symbolic_images

Image = PIL.Image.Image


def noise(width: int, height: int, mode: str) -> Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def assert_same(method: Callable[[Image], Image], image: Image) -> None:
    """Check a method on an image and on one of symbolic pixels that hold the same."""
    expected = np.asarray(method(image))
    with recorded_images():
        computed = method(image_of(constant_pixels(image)))
    pixels = pixels_of(computed)
    assert pixels is not None
    values = pixels.values.movedim(0, -1).numpy()
    assert np.array_equal(values[..., 0] if expected.ndim == 2 else values, expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("resample", [*Resampling][:6])
def test_resizes_as_pillow_does(resample: Resampling, mode: str) -> None:
    image = noise(37, 23, mode)
    for size in ((16, 16), (37, 50), (64, 23), (90, 3), (1, 1)):
        assert_same(lambda one, size=size: one.resize(size, resample), image)  # type: ignore[misc]
        assert_same(lambda one, size=size: one.resize(size, resample, (1.5, 2, 20.25, 19)), image)  # type: ignore[misc]


def pasted(image: Image, at: tuple[int, int] = (-5, 20)) -> Image:
    canvas = PIL.Image.new("RGB", (30, 30), (1, 2, 3))
    canvas.paste(image, at)
    return canvas


METHODS: dict[str, Callable[[Image], Any]] = {
    "crop": lambda image: image.crop((-3, 2, 30, 40)),
    "crop right of it": lambda image: image.crop((40, 2, 43, 9)),
    "crop left of it": lambda image: image.crop((-5, 2, -1, 9)),
    "crop above it": lambda image: image.crop((30, -9, 40, -2)),
    "crop around it": lambda image: image.crop((-2, -3, 40, 30)),
    "paste right of it": lambda image: pasted(image, (32, 2)),
    "paste above it": lambda image: pasted(image, (0, -40)),
    "grey": lambda image: image.convert("L"),
    "colour": lambda image: image.convert("L").convert("RGB"),
    "flip": lambda image: image.transpose(Transpose.FLIP_LEFT_RIGHT).transpose(Transpose.FLIP_TOP_BOTTOM),
    "paste": pasted,
    "exif": ImageOps.exif_transpose,
    "fit": lambda image: ImageOps.fit(image, (12, 12)),
    "copy": lambda image: image.copy(),
}


@pytest.mark.parametrize("name", METHODS)
def test_computes_as_pillow_does(name: str) -> None:
    assert_same(METHODS[name], noise(37, 23, "RGB"))


REFUSED: dict[str, tuple[Callable[[Image], Any], str]] = {
    "filter": (lambda image: image.filter(ImageFilter.GaussianBlur(2)), "gaussian_blur reads the pixels"),
    "histogram": (lambda image: image.histogram(), "histogram reads the pixels"),
    "bounding box": (lambda image: image.getbbox(), "getbbox reads the pixels"),
    "pixel": (lambda image: image.load()[0, 0], "the pixel .* is read"),
    "colour": (lambda image: image.getpixel((0, 0)), "getpixel reads the pixels"),
    "bytes": (lambda image: image.tobytes(), "read as bytes"),
    "mode": (lambda image: image.convert("CMYK"), "converted to Pillow's mode CMYK"),
    "rotation": (lambda image: image.transpose(Transpose.ROTATE_90), "is rotated"),
    "mask": (lambda image: image.paste(image, (0, 0), image.convert("L")), "with a mask"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_before_the_request_is_refused(name: str) -> None:
    method, message = REFUSED[name]
    with recorded_images(), pytest.raises(CaptureError, match=message):
        method(image_of(constant_pixels(noise(5, 4, "RGB"))))


def test_a_batch_becomes_an_image_or_a_list() -> None:
    tensor = torch.rand(2, 3, 4, 5)
    one, several = symbolic_images(tensor[:1]), symbolic_images(tensor)
    assert isinstance(one, Image)
    assert (one.size, one.mode, one.width, one.height) == ((5, 4), "RGB", 5, 4)
    assert isinstance(several, list)
    pixels = pixels_of(several[1])
    assert pixels is not None
    assert torch.equal(pixels.values, torch.round(tensor[1] * 255))
