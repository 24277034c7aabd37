"""Trace image processors of diffusers and transformers on an image of the request, and compare them with themselves."""

from __future__ import annotations

import copy
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


def on_a_canvas(image: Any) -> torch.Tensor:
    return by_hand(copy.deepcopy(cropped_image(image)))


def cropped_image(image: Any) -> Any:
    canvas = PIL.Image.new("RGB", (30, 20), (9, 8, 7))
    canvas.paste(image.crop((3, 2, 20, 12)), (4, 5))
    return canvas


def of_a_tensor(image: Any) -> torch.Tensor:
    frames = VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(image)) * 0.5
    extractor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    return extractor(images=frames, return_tensors="pt").pixel_values  # type: ignore[no-any-return]


PROCESSORS: dict[str, Process] = {
    "VaeImageProcessor": vae,
    "VaeImageProcessor for masks": grey,
    "VaeImageProcessor that crops": cropped,
    "CLIPImageProcessor": prepared(transformers.CLIPImageProcessor(size=20, crop_size=16)),
    "CLIPImageProcessor that pads": prepared(transformers.CLIPImageProcessor(size=10, crop_size=16)),
    "SiglipImageProcessor": prepared(transformers.SiglipImageProcessor(size={"height": 24, "width": 24})),
    "Qwen2VLImageProcessor": prepared(transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)),
    "by hand": by_hand,
    "on a canvas": on_a_canvas,
    "of a tensor": of_a_tensor,
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


def test_results_that_are_arrays_are_results_of_the_program() -> None:
    def sampler() -> Any:
        frames = torch.randn(2, 3, 4).permute(0, 2, 1).float().numpy()
        return np.stack([frames, frames], axis=1)

    program = trace(sampler, {}, {}, calls=ComponentCalls())
    noise = torch.randn(2, 3, 4)
    [computed] = evaluate(program, {"n0": noise})
    assert torch.equal(computed, torch.stack([noise.permute(0, 2, 1)] * 2, 1))
