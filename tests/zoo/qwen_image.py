"""Assemble Qwen-Image and what was made of it."""

from typing import Any

import diffusers as d
import transformers as t

from tests.zoo.components import amplified, flow, qwen_2_5
from tests.zoo.entry import LENGTH, SIZE, WIDTH, Entry, entry, photo, photo_mask, texts, without

DENOISER: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 6, 6),
}


def vae(levels: int = 3) -> d.AutoencoderKLQwenImage:
    """Make an autoencoder of factor 4, or of more for large images."""
    return d.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * levels,
        num_res_blocks=1,
        temperal_downsample=[False] * (levels - 1),
        latents_mean=[0.1, -0.2, 0.0, 0.3],
        latents_std=[1.2, 0.9, 1.5, 1.0],
    )


def qwen_image(pipeline: type, request: dict[str, Any], levels: int = 3, **components: Any) -> Entry:
    """Put a pipeline of Qwen-Image's kind together."""
    parts = {
        "scheduler": flow(),
        "vae": vae(levels),
        "transformer": amplified(d.QwenImageTransformer2DModel(**DENOISER), 4),
    }
    return Entry(pipeline(**parts | qwen_2_5() | components), request)


def request(**changes: Any) -> dict[str, Any]:
    """Request an image with true guidance."""
    return without(texts(true_cfg_scale=3.0, max_sequence_length=LENGTH, **changes), "guidance_scale")


@entry("QwenImagePipeline")
def text_to_image() -> Entry:
    return qwen_image(d.QwenImagePipeline, request())


@entry("QwenImageImg2ImgPipeline")
def image_to_image() -> Entry:
    return qwen_image(d.QwenImageImg2ImgPipeline, request(image=photo(), strength=0.7))


@entry("QwenImageInpaintPipeline")
def inpaint() -> Entry:
    return qwen_image(d.QwenImageInpaintPipeline, request(image=photo(), mask_image=photo_mask(), strength=0.7))


@entry("QwenImageControlNetPipeline")
def controlnet() -> Entry:
    control = d.QwenImageControlNetModel(**DENOISER)
    return qwen_image(d.QwenImageControlNetPipeline, request(control_image=photo()), controlnet=control)


@entry("QwenImageEditPipeline", refused="re.finditer of prompt, a text that only the run knows", needs="torchvision")
def edit() -> Entry:
    return editing(d.QwenImageEditPipeline, photo())


@entry("QwenImageEditPlusPipeline", needs="torchvision")
def edit_plus() -> Entry:
    return editing(d.QwenImageEditPlusPipeline, [photo(), photo(24, seed=2)])


def editing(pipeline: type, image: Any) -> Entry:
    """Put a pipeline together that edits images, which it brings to a million pixels."""
    images = t.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    language = qwen_2_5()
    processor = t.Qwen2VLProcessor(images, language["tokenizer"], t.Qwen2VLVideoProcessor())
    return qwen_image(
        pipeline, without(request(image=image), *SIZE) | {"height": 64, "width": 64}, 6, processor=processor, **language
    )


@entry("QwenImageControlNetInpaintPipeline")
def controlnet_inpaint() -> Entry:
    control = d.QwenImageControlNetModel(**DENOISER, extra_condition_channels=4)
    images = request(control_image=photo(), control_mask=photo_mask())
    return qwen_image(d.QwenImageControlNetInpaintPipeline, images, controlnet=control)
