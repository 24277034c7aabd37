"""Trace image processors of diffusers and transformers on an image of the request, and compare them with themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from diffusers.image_processor import VaeImageProcessor

from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Image
from diffc.compiler.tracing.symbolic_pixels import symbolic_images
from diffc.compiler.tracing.trace import trace
from tests.tolerances import PICTURE_OF_NUMPY

Process = Callable[[Any], torch.Tensor]

WIDTH, HEIGHT = 45, 31


def vae(image: Any) -> torch.Tensor:
    return VaeImageProcessor(vae_scale_factor=8).preprocess(image)


def grey(image: Any) -> torch.Tensor:
    processor = VaeImageProcessor(
        vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True, resample="bicubic"
    )
    return processor.preprocess(image, height=16, width=24)


def cropped(image: Any) -> torch.Tensor:
    return VaeImageProcessor(vae_scale_factor=8).preprocess(image, height=24, width=16, resize_mode="crop")


def prepared(processor: Any) -> Process:
    return lambda image: processor(images=[image], return_tensors="pt").pixel_values  # type: ignore[no-any-return]


def by_hand(image: Any) -> torch.Tensor:
    array = np.array(image.convert("RGB").resize((8, 8), PIL.Image.Resampling.BILINEAR))
    return torch.from_numpy(array[None].astype(np.float32).transpose(0, 3, 1, 2) / 127.5) - 1.0


PROCESSORS: dict[str, Process] = {
    "VaeImageProcessor": vae,
    "VaeImageProcessor for masks": grey,
    "VaeImageProcessor that crops": cropped,
    "CLIPImageProcessor": prepared(transformers.CLIPImageProcessor(size=20, crop_size=16)),
    "CLIPImageProcessor that pads": prepared(transformers.CLIPImageProcessor(size=10, crop_size=16)),
    "SiglipImageProcessor": prepared(transformers.SiglipImageProcessor(size={"height": 24, "width": 24})),
    "Qwen2VLImageProcessor": prepared(transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)),
    "by hand": by_hand,
}


def traced(process: Process) -> Program:
    inputs = {"image": Image((1, 3, HEIGHT, WIDTH))}
    return trace(lambda image: process(symbolic_images(image)), {}, inputs, calls=ComponentCalls())


@pytest.mark.parametrize("name", PROCESSORS)
def test_an_image_processor_becomes_part_of_the_program(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    expected = PROCESSORS[name](PIL.Image.fromarray(pixels))
    image = torch.from_numpy(pixels).movedim(-1, 0)[None].float() / 255
    [computed] = evaluate(traced(PROCESSORS[name]), {"image": image})
    assert computed.shape == expected.shape
    assert (computed.double() - expected.double()).abs().max() <= PICTURE_OF_NUMPY
