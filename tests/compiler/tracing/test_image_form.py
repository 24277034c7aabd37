"""Decide between tensors and images by what becomes of one image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.image_form import AsImage, check_rows, have_same_arguments, image_form
from diffc.compiler.tracing.request_inputs import Image
from diffc.compiler.tracing.symbolic_pixels import symbolic_images
from diffc.compiler.tracing.trace import trace
from tests.small_models import Model


def tensor_of(image: Any) -> torch.Tensor:
    """Prepare an image as most pipelines do."""
    if isinstance(image, torch.Tensor):
        return image
    return torch.from_numpy(np.array(image).astype(np.float32) / 255.0).permute(2, 0, 1)[None]


def prepares_both(image: Any, model: Model) -> torch.Tensor:
    return model(2.0 * tensor_of(image) - 1.0)


def skips_tensors(image: Any, model: Model) -> torch.Tensor:
    return model(tensor_of(image) if isinstance(image, torch.Tensor) else 2.0 * tensor_of(image) - 1.0)


def smooths_images(image: Any, model: Model) -> torch.Tensor:
    small = image if isinstance(image, torch.Tensor) else image.resize((2, 2)).resize((3, 4))
    return model(tensor_of(small))


def wants_tensors(image: Any, model: Model) -> torch.Tensor:
    if isinstance(image, PIL.Image.Image):
        raise ValueError("pass a tensor")
    return model(image)


def wants_images(image: Any, model: Model) -> torch.Tensor:
    if not isinstance(image, PIL.Image.Image):
        raise ValueError("pass an image")
    return model(tensor_of(image))


def reads_pixels(image: Any, model: Model) -> torch.Tensor:
    if isinstance(image, PIL.Image.Image) and image.getbbox():
        image = tensor_of(image)
    return model(image)


PREPARATIONS: dict[str, Callable[[Any], Any]] = {
    "merge": lambda image: tensor_of(PIL.Image.merge("RGB", [image.convert("L")] * 3)),
    "rotate": lambda image: tensor_of(image.rotate(30)),
    "four channels": lambda image: tensor_of(PIL.Image.fromarray(np.array(image)[:, :, [0, 1, 2, 0]])),
    "a constructor": lambda image: torch.Tensor(np.array(image)).permute(2, 0, 1)[None],
}

Sampler = Callable[[Any, Model], torch.Tensor]


def traced(sampler: Sampler, form: AsImage | None) -> Program:
    model = Model()

    def function(image: torch.Tensor) -> torch.Tensor:
        return sampler(image if form is None else form(image), model)

    return trace(function, {"model": model}, {"image": Image((1, 3, 4, 3))}, calls=ComponentCalls())


@pytest.mark.parametrize("sampler", [prepares_both, wants_tensors])
def test_images_stay_tensors_where_both_are_the_same_or_images_are_refused(sampler: Sampler) -> None:
    assert image_form(lambda form: traced(sampler, form)) is None


@pytest.mark.parametrize("sampler", [skips_tensors, smooths_images, wants_images])
def test_a_pipeline_is_handed_images_where_tensors_mean_something_else(sampler: Sampler) -> None:
    assert image_form(lambda form: traced(sampler, form)) is symbolic_images


def test_a_pipeline_whose_preparation_is_not_recorded_is_refused() -> None:
    with pytest.raises(CaptureError, match="getbbox reads the pixels"):
        image_form(lambda form: traced(reads_pixels, form))


@pytest.mark.parametrize("name", PREPARATIONS)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_refusal_of_symbolic_images_is_none_of_the_pipeline(name: str) -> None:
    def sampler(image: Any, model: Model) -> torch.Tensor:
        return model(image if isinstance(image, torch.Tensor) else PREPARATIONS[name](image))

    with pytest.raises(CaptureError, match="prepares images with a function that is not recorded"):
        image_form(lambda form: traced(sampler, form))


def test_programs_differ_in_their_calls_and_in_what_they_return() -> None:
    def twice(image: torch.Tensor, model: Model) -> torch.Tensor:
        return model(model(image))

    def halved(image: torch.Tensor, model: Model) -> torch.Tensor:
        return model(image) / 2

    def once(image: torch.Tensor, model: Model) -> torch.Tensor:
        return model(image)

    one, *others = (traced(sampler, None) for sampler in (once, twice, halved))
    assert have_same_arguments(one, traced(once, None))
    assert not any(have_same_arguments(one, other) for other in others)


def test_a_list_of_images_has_a_row_for_each() -> None:
    def one_row_each(images: Any, model: Model) -> torch.Tensor:
        return model(torch.cat([tensor_of(image) for image in (images if isinstance(images, list) else [images])]))

    def joined(images: Any, model: Model) -> torch.Tensor:
        return model(torch.cat([tensor_of(image) for image in (images if isinstance(images, list) else [images])], 2))

    def program(sampler: Sampler, batch: int) -> Program:
        model, inputs = Model(), {"image": Image((batch, 3, 4, 3))}
        return trace(
            lambda image: sampler(symbolic_images(image), model), {"model": model}, inputs, calls=ComponentCalls()
        )

    check_rows(program(one_row_each, 2), program(one_row_each, 1))
    with pytest.raises(CaptureError, match="several of one prompt"):
        check_rows(program(joined, 2), program(joined, 1))


def test_arguments_that_are_truth_values_are_compared() -> None:
    class Selects(torch.nn.Module):
        def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return image * mask

    def selected(least: float) -> Program:
        def function(image: torch.Tensor) -> torch.Tensor:
            return selects(image, image > least)

        return trace(function, {"selects": selects}, {"image": Image((1, 3, 4, 3))}, calls=ComponentCalls())

    selects = Selects()
    assert have_same_arguments(selected(0.5), selected(0.5))
    assert not have_same_arguments(selected(0.5), selected(0.25))
