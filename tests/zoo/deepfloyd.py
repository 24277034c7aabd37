"""Assemble DeepFloyd IF: three pipelines of pixels, and three that make their images larger."""

from typing import Any

import diffusers as d

from tests.zoo.components import t5
from tests.zoo.entry import SIZE, WIDTH, Entry, entry, photo, photo_mask, texts, without


def unet(channels: int = 3, **changes: Any) -> d.UNet2DConditionModel:
    """Make a denoiser of pixels, which predicts variances too."""
    return d.UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(32, 64),
        in_channels=channels,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        **changes,
    )


def scheduler() -> d.DDPMScheduler:
    """Make the scheduler of IF, which limits values by the quantile of an image."""
    return d.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        prediction_type="epsilon",
        variance_type="learned_range",
    )


def deepfloyd(pipeline: type, request: dict[str, Any]) -> Entry:
    """Put a pipeline of IF together; images that are made larger have noise of their own."""
    parts: dict[str, Any] = {"unet": unet(), "scheduler": scheduler()}
    if "noise_level" in request:
        parts["unet"] = unet(6, class_embed_type="timestep", mid_block_scale_factor=1.414)
        parts["image_noising_scheduler"] = d.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    none = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    return Entry(pipeline(**t5(), **parts, **none, requires_safety_checker=False), request)


def request(**changes: Any) -> dict[str, Any]:
    """Request an image whose size its inputs decide."""
    return without(texts(clean_caption=False, **changes), *SIZE)


PARTLY = {"strength": 0.7, "num_inference_steps": 5}


@entry("IFPipeline")
def text_to_image() -> Entry:
    return deepfloyd(d.IFPipeline, request() | SIZE)


@entry("IFImg2ImgPipeline")
def image_to_image() -> Entry:
    return deepfloyd(d.IFImg2ImgPipeline, request(image=photo(), **PARTLY))


@entry("IFInpaintingPipeline")
def inpaint() -> Entry:
    return deepfloyd(d.IFInpaintingPipeline, request(image=photo(), mask_image=photo_mask(), **PARTLY))


@entry("IFSuperResolutionPipeline")
def larger() -> Entry:
    return deepfloyd(d.IFSuperResolutionPipeline, request(image=photo(8), noise_level=10) | SIZE)


@entry("IFImg2ImgSuperResolutionPipeline")
def larger_image() -> Entry:
    images = {"image": photo(8), "original_image": photo(seed=2)}
    return deepfloyd(d.IFImg2ImgSuperResolutionPipeline, request(noise_level=10, **images, **PARTLY))


@entry("IFInpaintingSuperResolutionPipeline")
def larger_inpainted() -> Entry:
    images = {"image": photo(8), "original_image": photo(seed=2), "mask_image": photo_mask()}
    return deepfloyd(d.IFInpaintingSuperResolutionPipeline, request(noise_level=10, **images, **PARTLY))
