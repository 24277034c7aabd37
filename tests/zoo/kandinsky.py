"""Assemble Kandinsky 3 and 5."""

from typing import Any

import diffusers as d

from tests.zoo.components import clip, flow_kl, movq, qwen_2_5, t5
from tests.zoo.entry import LENGTH, SIZE, WIDTH, Entry, entry, photo, texts, without
from tests.zoo.hunyuan_video import vae as video_vae


def kandinsky_3(pipeline: type, request: dict[str, Any]) -> Entry:
    """Put a pipeline of Kandinsky 3's kind together."""
    unet = d.Kandinsky3UNet(
        time_embedding_dim=16,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(16, 16),
        cross_attention_dim=16,
        encoder_hid_dim=WIDTH,
    )
    scheduler = d.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True, thresholding=False)
    made = t5()
    made["tokenizer"].model_max_length = 128
    return Entry(pipeline(unet=unet, scheduler=scheduler, movq=movq(), **made), request)


@entry("Kandinsky3Pipeline")
def text_to_image() -> Entry:
    return kandinsky_3(d.Kandinsky3Pipeline, texts())


@entry("Kandinsky3Img2ImgPipeline")
def image_to_image() -> Entry:
    request = without(texts(image=photo(64), strength=0.7, num_inference_steps=5), *SIZE)
    return kandinsky_3(d.Kandinsky3Img2ImgPipeline, request)


# Kandinsky 5


def kandinsky_5(pipeline: type, vae: Any, *, visual_cond: bool, **request: Any) -> Entry:
    """Put a pipeline of Kandinsky 5's kind together."""
    transformer = d.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=16,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=32,
        ff_dim=37,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
        visual_cond=visual_cond,
    )
    made = pipeline(
        transformer=transformer,
        vae=vae,
        **qwen_2_5(),
        **clip("_2", max_position_embeddings=77),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    return Entry(made, texts(max_sequence_length=LENGTH, **request))


@entry(
    "Kandinsky5T2IPipeline",
    refused="the pipeline refuses: .tolist() is not supported for tensor subclasses, got Symbolic",
)
def kandinsky_5_image() -> Entry:
    return kandinsky_5(d.Kandinsky5T2IPipeline, flow_kl(), visual_cond=False, num_inference_steps=2)


@entry(
    "Kandinsky5T2VPipeline",
    refused="the pipeline refuses: .tolist() is not supported for tensor subclasses, got Symbolic",
)
def kandinsky_5_video() -> Entry:
    return kandinsky_5(d.Kandinsky5T2VPipeline, video_vae(), visual_cond=True, num_frames=5)


@entry(
    "Kandinsky5I2VPipeline",
    refused="the pipeline refuses: .tolist() is not supported for tensor subclasses, got Symbolic",
)
def kandinsky_5_image_to_video() -> Entry:
    return kandinsky_5(d.Kandinsky5I2VPipeline, video_vae(), visual_cond=True, num_frames=21, image=photo())
