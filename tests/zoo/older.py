"""Assemble pipelines of 2022 and 2023, some of which diffusers keeps as they are: UNets of images and of videos."""

from typing import Any

import diffusers as d
import transformers as t
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder

from tests.zoo import stable_diffusion as sd
from tests.zoo.components import UNET, clip, clip_vision, ddim, kl, unet
from tests.zoo.entry import SIZE, WIDTH, Entry, entry, photo, photo_mask, rebuilt, texts
from tests.zoo.given_images import feature_extractor, video
from tests.zoo.transformers import ddpm

SD = {"requires_safety_checker": False, "safety_checker": None, "feature_extractor": None}


@entry("DDIMPipeline")
def ddim_alone() -> Entry:
    return rebuilt(d.DDIMPipeline, ddpm(), parts={"scheduler": d.DDIMScheduler()}, eta=0.5)


@entry("ConsistencyModelPipeline")
def consistency_model() -> Entry:
    scheduler = d.CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0)
    return rebuilt(d.ConsistencyModelPipeline, ddpm(), parts={"scheduler": scheduler})


@entry("StableDiffusionSAGPipeline")
def self_attention_guidance() -> Entry:
    return rebuilt(d.StableDiffusionSAGPipeline, sd.stable_diffusion(), parts=SD, sag_scale=0.75)


@entry("StableDiffusionPanoramaPipeline")
def panorama() -> Entry:
    base = sd.stable_diffusion()
    return rebuilt(d.StableDiffusionPanoramaPipeline, base, parts=SD, height=16, width=32, view_batch_size=2)


@entry(
    "SemanticStableDiffusionPipeline",
    refused="the pipeline refuses: Sizes of tensors must match except in dimension 0",
)
def semantic_guidance() -> Entry:
    request = {"editing_prompt": ["blue"], "edit_guidance_scale": 5.0, "edit_warmup_steps": 1, "edit_threshold": 0.9}
    return rebuilt(d.SemanticStableDiffusionPipeline, sd.stable_diffusion(), parts=SD, **request)


def grounded(pipeline: type, kind: str, **request: Any) -> Entry:
    """Put a pipeline together that places what phrases name in boxes."""
    base = sd.stable_diffusion()
    parts = SD | {"unet": unet(attention_type=kind)}
    boxes = {"gligen_boxes": [[0.2, 0.6, 0.8, 0.9]], "gligen_phrases": ["a circle"]}
    return rebuilt(pipeline, base, parts=parts, **boxes, **request)


@entry("StableDiffusionGLIGENPipeline")
def gligen() -> Entry:
    return grounded(d.StableDiffusionGLIGENPipeline, "gated")


@entry("PaintByExamplePipeline")
def paint_by_example() -> Entry:
    vision = t.CLIPVisionConfig(
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
    )
    base = sd.stable_diffusion()
    parts = SD | {"image_encoder": PaintByExampleImageEncoder(vision, proj_size=WIDTH), "unet": unet(in_channels=9)}
    parts["feature_extractor"] = feature_extractor()
    images = {"image": photo(), "mask_image": photo_mask(), "example_image": photo(seed=2)}
    return rebuilt(d.PaintByExamplePipeline, base, *("prompt", "negative_prompt"), parts=parts, **images)


# Videos of UNets


def video_unet(kind: type = d.UNet3DConditionModel, **changes: Any) -> Any:
    """Make a UNet of videos of two levels."""
    blocks = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }
    return kind(**UNET | blocks | changes)


@entry("TextToVideoSDPipeline")
def text_to_video() -> Entry:
    pipeline = d.TextToVideoSDPipeline(vae=kl(), **clip(), unet=video_unet(), scheduler=ddim())
    return Entry(pipeline, texts(num_frames=3))


@entry("VideoToVideoSDPipeline")
def video_to_video() -> Entry:
    request = {"video": video(frames=3), "strength": 0.7, "num_inference_steps": 5}
    return rebuilt(d.VideoToVideoSDPipeline, text_to_video(), *("num_frames", *SIZE), **request)


@entry("I2VGenXLPipeline")
def image_to_video() -> Entry:
    pipeline = d.I2VGenXLPipeline(
        vae=kl(),
        **clip(),
        image_encoder=clip_vision(),
        feature_extractor=feature_extractor(),
        unet=video_unet(d.models.unets.unet_i2vgen_xl.I2VGenXLUNet, attention_head_dim=4),
        scheduler=ddim(),
    )
    return Entry(pipeline, texts(image=photo(), num_frames=3, target_fps=4, decode_chunk_size=2, clip_skip=None))


@entry("PIAPipeline")
def personalized_animation() -> Entry:
    adapter = d.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        conv_in_channels=9,
    )
    pipeline = d.PIAPipeline(vae=kl(), **clip(), unet=unet(), motion_adapter=adapter, scheduler=ddim())
    return Entry(pipeline, texts(image=photo(), num_frames=4))
