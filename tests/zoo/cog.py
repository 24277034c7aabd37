"""Assemble what was made of CogVideoX, CogView 3 and 4, and ConsisID."""

from typing import Any

import diffusers as d
import torch
import transformers as t

from tests.zoo.components import LANGUAGE_MODEL, amplified, betas, glm_tokenizer, kl, t5
from tests.zoo.entry import LENGTH, SIZE, WIDTH, Entry, entry, photo, rebuilt, texts, without
from tests.zoo.given_images import video
from tests.zoo.video_and_audio import cogvideox, cogvideox_transformer


def derived(pipeline: type, *dropped: str, in_channels: int = 4, **request: Any) -> Entry:
    """Put CogVideoX's components together to another pipeline."""
    base = cogvideox()
    parts = base.pipeline.components
    parts["transformer"] = cogvideox_transformer(
        in_channels=in_channels, num_attention_heads=2, attention_head_dim=16, use_rotary_positional_embeddings=True
    )
    return Entry(pipeline(**parts), without(base.request, *dropped) | request)


@entry("CogVideoXPipeline (rotary)")
def text_to_video() -> Entry:
    return derived(d.CogVideoXPipeline)


@entry("CogVideoXImageToVideoPipeline")
def image_to_video() -> Entry:
    return derived(d.CogVideoXImageToVideoPipeline, in_channels=8, image=photo())


@entry("CogVideoXVideoToVideoPipeline")
def video_to_video() -> Entry:
    request = {"video": video(frames=9), "strength": 0.7, "num_inference_steps": 5}
    return derived(d.CogVideoXVideoToVideoPipeline, "num_frames", **request)


@entry("CogVideoXFunControlPipeline")
def control() -> Entry:
    return derived(d.CogVideoXFunControlPipeline, "num_frames", in_channels=8, control_video=video(frames=9))


@entry("ConsisIDPipeline")
def consisid() -> Entry:
    from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline

    d.ConsisIDPipeline = ConsisIDPipeline  # hidden where OpenCV is not installed, which draws the points of a face only
    transformer = d.ConsisIDTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=LENGTH,
        use_rotary_positional_embeddings=True,
        cross_attn_interval=1,
        is_kps=False,
        is_train_face=True,
        cross_attn_dim_head=1,
        cross_attn_num_heads=1,
        LFE_id_dim=2,
        LFE_vit_dim=2,
        LFE_depth=5,
        LFE_num_heads=8,
        LFE_num_scale=1,
        LFE_output_dim=21,
        LFE_ff_mult=1,
        LFE_num_id_token=1,
    )
    base = cogvideox()
    parts = base.pipeline.components | {"transformer": amplified(transformer)}
    face = {"id_vit_hidden": [torch.ones(1, 2, 2)], "id_cond": torch.ones(1, 2)}
    return Entry(d.ConsisIDPipeline(**parts), base.request | face | {"image": photo()})


# CogView

COGVIEW: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "text_embed_dim": WIDTH,
    "time_embed_dim": 8,
    "condition_dim": 4,
    "sample_size": 8,
}


@entry("CogView3PlusPipeline")
def cogview_3_plus() -> Entry:
    scheduler = betas(
        d.CogVideoXDDIMScheduler, prediction_type="v_prediction", clip_sample=False, rescale_betas_zero_snr=True
    )
    transformer = d.CogView3PlusTransformer2DModel(**COGVIEW, pos_embed_max_size=16)
    pipeline = d.CogView3PlusPipeline(**t5(), vae=kl(), transformer=transformer, scheduler=scheduler)
    return Entry(pipeline, texts(max_sequence_length=LENGTH))


@entry("CogView4Pipeline", refused="aten.equal.default reads the value of a symbolic tensor")
def cogview_4() -> Entry:
    tokenizer = glm_tokenizer()
    glm = t.GlmConfig(**LANGUAGE_MODEL, head_dim=8, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    scheduler = d.FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    transformer = d.CogView4Transformer2DModel(**COGVIEW, pos_embed_max_size=16, rope_axes_dim=(8, 8))
    pipeline = d.CogView4Pipeline(
        tokenizer=tokenizer, text_encoder=t.GlmModel(glm), vae=kl(), transformer=transformer, scheduler=scheduler
    )
    return Entry(pipeline, texts(max_sequence_length=LENGTH) | SIZE)


@entry("CogView4ControlPipeline", refused="a text of 16 tokens, and this program takes")
def cogview_4_control() -> Entry:
    base = cogview_4()
    denoiser = d.CogView4Transformer2DModel(
        **COGVIEW | {"in_channels": 8, "out_channels": 4}, pos_embed_max_size=16, rope_axes_dim=(8, 8)
    )
    return rebuilt(d.CogView4ControlPipeline, base, parts={"transformer": denoiser}, control_image=photo())
