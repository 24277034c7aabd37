"""Ask for pictures and tensors as the signature of a pipeline's call has them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import PIL.Image
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from diffc.compiler.errors import BuildError
from diffc.compiler.tracing.pipeline_inputs import as_arguments, pil_images, requested_arrays, with_conditions
from diffc.compiler.tracing.request_inputs import Image, Tensor

Pictures = PIL.Image.Image | torch.Tensor | list[PIL.Image.Image] | list[torch.Tensor]


class Model(ModelMixin, ConfigMixin):
    config_name = "config.json"

    @register_to_config
    def __init__(self, sample_size: int) -> None:
        super().__init__()


class Autoencoder(Model):
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


@dataclass
class Condition:
    frames: Pictures
    index: int = 0


class Pipeline:
    vae_scale_factor = 8
    components: dict[str, Any] = {"encoder": nn.Linear(1, 1), "autoencoder": Autoencoder(64), "denoiser": Model(4)}

    def __call__(
        self,
        embeds: torch.Tensor | list[torch.Tensor],
        image: Pictures = None,
        mask_image: Pictures = None,
        last_image: Pictures | None = None,
        pair: list[torch.Tensor] | None = None,
        video: list[list[Pictures]] | None = None,
        frame: torch.FloatTensor | None = None,
        conditions: Condition | list[Condition] | None = None,
        condition: Condition | None = None,
        prompt: str = "",
        callback: Callable[[int, int, torch.Tensor], None] | None = None,
        quoted: "torch.Tensor | None" = None,
    ) -> None:
        """Take what pipelines take."""


def asked(size: tuple[int, int] | None = None, **kinds: str) -> dict[str, Any]:
    return requested_arrays(Pipeline(), {"embeds": "7", **kinds}, batch=2, size=size)


def test_asks_for_the_pictures_that_a_pipeline_cannot_do_without() -> None:
    image, mask = Image((2, 3, 32, 32)), Image((2, 1, 32, 32))
    assert asked() == {"image": image, "mask_image": mask, "embeds": Tensor((2, 7))}
    assert asked(size=(16, 24))["image"] == Image((2, 3, 24, 16))


def test_asks_for_what_it_is_told() -> None:
    assert asked(embeds="16x24x24")["embeds"] == Tensor((2, 16, 24, 24))
    assert asked(last_image="image:8x4")["last_image"] == Image((2, 3, 4, 8))
    assert asked(last_image="picture:8x4") == asked(last_image="image:8x4"), "the former word"
    listed = asked(image="picture,5")
    assert (listed["image_1"], listed["image_2"]) == (Image((2, 3, 32, 32)), Tensor((2, 5)))
    assert "image" not in listed


def test_lists_are_put_together_again() -> None:
    kinds = {"embeds": "7", "image": "picture,picture", "pair": "3"}
    request = {"embeds": 1, "image_1": 2, "image_2": 3, "mask_image": 5, "pair": 4, "prompt": "x"}
    given = as_arguments(Pipeline(), kinds, request)
    assert given == {"embeds": 1, "image": [2, 3], "mask_image": 5, "pair": [4], "prompt": "x"}
    assert asked(embeds="7,") == asked(embeds="7"), "a list of one has no number"
    assert as_arguments(Pipeline(), kinds | {"embeds": "7,"}, request)["embeds"] == [1]


def test_annotations_are_seen_through_lists_and_older_types() -> None:
    kinds = {"embeds": "7", "video": "image,image", "frame": "image"}
    arrays = asked(**kinds)
    assert {arrays[name] for name in ("video_1", "video_2", "frame")} == {Image((2, 3, 32, 32))}
    request = {"embeds": 1, "image": 2, "mask_image": 3, "video_1": 4, "video_2": 5, "frame": 6}
    given = as_arguments(Pipeline(), kinds, request)
    assert (given["video"], given["frame"]) == ([4, 5], 6)


def test_fields_of_conditions_have_paths() -> None:
    kinds = {"embeds": "7", "conditions.0.frames": "image:8x4", "conditions.1.frames": "image,image"}
    arrays = asked(**kinds)
    assert arrays["conditions_0_frames"] == Image((2, 3, 4, 8))
    request = {name: at for at, name in enumerate(arrays)}
    arguments = with_conditions(Pipeline(), as_arguments(Pipeline(), kinds, request) | {"conditions.1.index": 9})
    first, *others = (request[f"conditions_{name}"] for name in ("0_frames", "1_frames_1", "1_frames_2"))
    assert arguments["conditions"] == [Condition(first), Condition(others, 9)]
    assert with_conditions(Pipeline(), {"condition.frames": 1}) == {"condition": Condition(1)}
    with pytest.raises(BuildError, match="conditions.0: missing a required argument: 'frames'"):
        with_conditions(Pipeline(), {"conditions.0.index": 1})


def test_what_a_pipeline_writes_into_a_list_is_gone_at_its_next_call() -> None:
    fixed = {"embeds": ["a text"]}
    for _ in range(2):
        (text,) = texts = with_conditions(Pipeline(), fixed)["embeds"]
        texts[0] = f"a template around {text}"
    assert fixed == {"embeds": ["a text"]}


def test_images_are_handed_over_as_images() -> None:
    several, one = torch.zeros(2, 3, 4, 5), torch.full((1, 1, 4, 5), 0.5)
    request = {"embeds": several, "image_1": several, "image_2": several, "mask_image": one}
    given = as_arguments(Pipeline(), {"embeds": "3x4x5", "image": "image,3x4x5"}, request, pil_images)
    assert given["embeds"] is several
    assert [image.size for image in given["image"][0]] == [(5, 4), (5, 4)]
    assert given["image"][1] is several, "an array is no image"
    assert (given["mask_image"].mode, given["mask_image"].getpixel((0, 0))) == ("L", 128)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({}, "Pipeline needs embeds, of a shape that its signature lacks"),
        ({"embeds": "0x4"}, "'0x4' is no input"),
        ({"embeds": "picture:8"}, "'picture:8' is no input"),
        ({"embeds": "7,,"}, "'' is no input"),
        ({"embeds": "7", "prompt": "4"}, "Pipeline takes neither images nor tensors as prompt"),
        (
            {"embeds": "7", "latents": "4"},
            "Pipeline takes neither images nor tensors as latents\n.*\n  fix: use one of embeds, .*, frame, quoted$",
        ),
        ({"embeds": "7", "callback": "4"}, "Pipeline takes neither images nor tensors as callback"),
        ({"embeds": "7", "conditions.index": "image"}, "Pipeline takes neither images nor tensors as conditions.index"),
        ({"embeds": "7", "frame.index": "image"}, "Pipeline takes neither images nor tensors as frame.index"),
    ],
)
def test_refuses(kinds: dict[str, str], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        requested_arrays(Pipeline(), kinds, batch=1, size=(8, 8))


def test_the_size_of_a_picture_must_be_known() -> None:
    pipeline = Pipeline()
    pipeline.components = {"encoder": nn.Linear(1, 1), "autoencoder": Autoencoder(64)}
    with pytest.raises(BuildError, match="the size of the image is not known"):
        requested_arrays(pipeline, {"embeds": "7"}, batch=1, size=None)
