"""Assemble HunyuanVideo and what was made of it."""

from typing import Any

import diffusers as d
import transformers as t

from tests.zoo.components import (
    LANGUAGE_MODEL,
    amplified,
    byt5,
    clip,
    llama,
    llama_tokenizer,
    qwen_2_5_config,
    qwen_tokenizer,
)
from tests.zoo.entry import LENGTH, WIDTH, Entry, entry, photo, texts, without

DENOISER: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "patch_size": 1,
    "text_embed_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "rope_axes_dim": (2, 4, 4),
}
TEMPLATE = "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video<|eot_id|>{}<|eot_id|>"
VIDEO = {"num_frames": 9, "max_sequence_length": LENGTH, "prompt_template": {"template": TEMPLATE, "crop_start": 6}}


def vae() -> d.AutoencoderKLHunyuanVideo:
    """Make an autoencoder of factor 8 in space and 4 in time."""
    return d.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def parts(transformer: type = d.HunyuanVideoTransformer3DModel, **changes: Any) -> dict[str, Any]:
    """Make the components that the pipelines share."""
    return {
        **llama(padding_side="right"),
        **clip("_2", max_position_embeddings=77),
        "transformer": transformer(**DENOISER | changes),
        "vae": vae(),
        "scheduler": d.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


@entry("HunyuanVideoPipeline")
def text_to_video() -> Entry:
    return Entry(d.HunyuanVideoPipeline(**parts()), without(texts(**VIDEO), "negative_prompt"))


@entry(
    "HunyuanVideoImageToVideoPipeline",
    refused="NumPy's allclose of an image is not recorded",
)
def image_to_video() -> Entry:
    tokenizer = llama_tokenizer(padding_side="right")
    language = LANGUAGE_MODEL | {"num_hidden_layers": 3, "vocab_size": len(tokenizer), "model_type": "llama"}
    vision = {"hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": 28, "patch_size": 14, "projection_dim": WIDTH, "model_type": "clip_vision_model"}
    config = t.LlavaConfig(
        text_config=language,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    template = (
        "<|start_header_id|>system<|end_header_id|>\n\n<image>\nDescribe the video<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    places = {"crop_start": 10, "image_emb_start": 5, "image_emb_end": 9, "image_emb_len": 4}
    changes = parts(in_channels=9, image_condition_type="latent_concat", guidance_embeds=False)
    encoder = {"text_encoder": t.LlavaForConditionalGeneration(config), "tokenizer": tokenizer}
    images = t.CLIPImageProcessor(size=28, crop_size=28)
    pipeline = d.HunyuanVideoImageToVideoPipeline(**changes | encoder, image_processor=images)
    request = VIDEO | {"prompt_template": {"template": template} | places, "image_embed_interleave": 2}
    return Entry(pipeline, without(texts(image=photo(), **request), "negative_prompt", "guidance_scale"))


@entry(
    "HunyuanVideoFramepackPipeline",
    refused="NumPy's allclose of an image is not recorded",
)
def framepack() -> Entry:
    config = t.SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    components = parts(
        d.HunyuanVideoFramepackTransformer3DModel,
        patch_size=2,
        has_image_proj=True,
        image_proj_dim=WIDTH,
        has_clean_x_embedder=True,
    )
    pipeline = d.HunyuanVideoFramepackPipeline(
        **components,
        image_encoder=t.SiglipVisionModel(config),
        feature_extractor=t.SiglipImageProcessor(size={"height": 28, "width": 28}),
    )
    request = texts(image=photo(64), height=64, width=64, latent_window_size=3, **VIDEO)
    return Entry(pipeline, without(request, "negative_prompt"))


@entry("HunyuanVideo15Pipeline", refused="whether there is any of prompt, a text that only the run knows")
def hunyuan_video_1_5() -> Entry:
    tokenizer = qwen_tokenizer()
    transformer = d.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=16,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    video = d.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )
    pipeline = d.HunyuanVideo15Pipeline(
        text_encoder=t.Qwen2_5_VLTextModel(qwen_2_5_config(tokenizer, layers=3).text_config),
        tokenizer=tokenizer,
        **byt5(),
        transformer=amplified(transformer),
        vae=video,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=7.0),
        guider=d.ClassifierFreeGuidance(guidance_scale=4.0),
    )
    return Entry(pipeline, without(texts(num_frames=5), "guidance_scale"))
