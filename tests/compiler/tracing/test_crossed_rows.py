"""Refuse programs of several images in which a given image reaches other images than its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Input, Op, Program, Ref, Type, Value
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.crossed_rows import refuse_crossed_rows
from diffc.compiler.tracing.pipeline import Sampling, trace_pipeline
from diffc.compiler.tracing.request_inputs import Image
from diffc.compiler.tracing.trace import trace
from tests.zoo import ZOO

MODEL = nn.Conv2d(3, 3, 3, padding=1)


def guided(image: Tensor) -> Tensor:
    first, second = MODEL(torch.cat([image, image * 0.5])).chunk(2)
    return first + 2 * (second - first) + torch.randn(2, 3, 4, 4)


def joined(image: Tensor) -> Tensor:
    return torch.randn(2, 3, 4, 4) + MODEL(image)[None].mean(1)


def swapped(image: Tensor) -> Tensor:
    return torch.randn(2, 3, 4, 4) + MODEL(image.flip(0))


def check(function: Callable[[Tensor], Tensor], batch: int = 2) -> None:
    """Trace a function of images, and check the rows."""
    image = Image((batch, 3, 4, 4))
    refuse_crossed_rows(trace(function, {"model": MODEL}, {"image": image}, calls=ComponentCalls()))


def test_rows_of_their_own_images_are_served() -> None:
    check(guided)


def undefined(image: Tensor) -> Tensor:
    return torch.randn(2, 3, 4, 4) + (MODEL(image)[None].mean(1) - 9).sqrt()


@pytest.mark.parametrize("function", [joined, swapped, undefined])
def test_rows_that_reach_other_images_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError, match=r"every image of main depends on all rows of image\n.*--batch 1"):
        check(function)


def test_operators_on_texts_are_passed_over() -> None:
    kind = Type("float32", (2, 3, 4, 4))
    double = Op("aten.mul.Tensor", (Ref("image"), 2.0), (), results=(Value("v0", kind),))
    lower = Op("lower", (Ref("prompt"),), (), results=(Value("text0", Type("text", (2,))),))
    inputs = Input("prompt", Type("text", (2,)), None), Input("image", kind, None)
    refuse_crossed_rows(Program("main", inputs, (), (), (), (lower, double), ("v0",)))


def test_images_of_an_ip_adapter_are_one_condition_of_all() -> None:
    pipeline = ZOO["StableDiffusionPipeline (IP-Adapter)"]().pipeline
    sampling = Sampling(steps=1, size=(16, 16), batch=2, inputs={"ip_adapter_image": "image:16x16"})
    with pytest.raises(CaptureError, match="depends on all rows of ip_adapter_image"):
        trace_pipeline(pipeline, sampling, ComponentCalls())
