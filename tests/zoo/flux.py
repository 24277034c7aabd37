"""Assemble what was made of FLUX.1, and FLUX.2."""

from typing import Any

import diffusers as d
import transformers as t

from tests.zoo.components import LANGUAGE_MODEL, amplified, flow, qwen_3, qwen_tokenizer
from tests.zoo.entry import WIDTH, Entry, entry, photo, photo_mask, texts, without
from tests.zoo.transformers import flux, flux_transformer


def derived(pipeline: type, in_channels: int = 16, **request: Any) -> Entry:
    """Put FLUX.1's components together to another pipeline, whose denoiser takes more channels in."""
    base = flux()
    parts = without(base.pipeline.components, "image_encoder", "feature_extractor")
    parts["transformer"] = flux_transformer(in_channels=in_channels, out_channels=16)
    return Entry(pipeline(**parts), base.request | request)


@entry("FluxImg2ImgPipeline")
def image_to_image() -> Entry:
    return derived(d.FluxImg2ImgPipeline, image=photo(), strength=0.7)


@entry("FluxInpaintPipeline")
def inpaint() -> Entry:
    return derived(d.FluxInpaintPipeline, image=photo(), mask_image=photo_mask(), strength=0.7)


@entry("FluxControlPipeline")
def control() -> Entry:
    return derived(d.FluxControlPipeline, 32, control_image=photo())


@entry("FluxControlImg2ImgPipeline")
def control_image_to_image() -> Entry:
    return derived(d.FluxControlImg2ImgPipeline, 32, image=photo(), control_image=photo(seed=2), strength=0.7)


@entry("FluxControlInpaintPipeline")
def control_inpaint() -> Entry:
    images = {"image": photo(), "control_image": photo(seed=2), "mask_image": photo_mask()}
    return derived(d.FluxControlInpaintPipeline, 32, strength=0.7, **images)


@entry("FluxFillPipeline")
def fill() -> Entry:
    return derived(d.FluxFillPipeline, 48, image=photo(), mask_image=photo_mask())


@entry("FluxKontextPipeline")
def kontext() -> Entry:
    return derived(d.FluxKontextPipeline, image=photo(), max_area=256, _auto_resize=False)


# FLUX.2


def flux_2_transformer(*, guidance_embeds: bool) -> d.Flux2Transformer2DModel:
    """Make the denoiser of FLUX.2."""
    denoiser = d.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    return amplified(denoiser)


def klein(pipeline: type, *, is_distilled: bool = False, **request: Any) -> Entry:
    """Put a pipeline of FLUX.2's smaller kind together."""
    vae = d.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )
    made = pipeline(
        scheduler=flow(),
        vae=vae,
        **qwen_3(causal=True),
        transformer=flux_2_transformer(guidance_embeds=False),
        is_distilled=is_distilled,
    )
    settings = {"max_sequence_length": 16, "text_encoder_out_layers": [0, 1, 2]}
    return Entry(made, without(texts(**settings | request), "negative_prompt"))


@entry("Flux2KleinPipeline")
def klein_text_to_image() -> Entry:
    return klein(d.Flux2KleinPipeline)


@entry("Flux2KleinPipeline (distilled)")
def klein_distilled() -> Entry:
    return klein(d.Flux2KleinPipeline, is_distilled=True, guidance_scale=1.0)


@entry("Flux2KleinPipeline (two images)")
def klein_edit() -> Entry:
    return klein(d.Flux2KleinPipeline, image=[photo(64), photo(64, seed=2)])


@entry("Flux2KleinInpaintPipeline")
def klein_inpaint() -> Entry:
    return klein(d.Flux2KleinInpaintPipeline, image=photo(64), mask_image=photo_mask(64), height=64, width=64)


@entry("Flux2KleinKVPipeline", refused="KV cache has not been populated yet")
def klein_kv() -> Entry:
    entry = klein(d.Flux2KleinKVPipeline, is_distilled=True, image=[photo(64)])
    return Entry(entry.pipeline, without(entry.request, "guidance_scale"))


@entry("Flux2Pipeline")
def flux_2() -> Entry:
    tokenizer = qwen_tokenizer()
    language = LANGUAGE_MODEL | {"head_dim": 8, "vocab_size": len(tokenizer), "model_type": "mistral"}
    vision = {"hidden_size": 16, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "head_dim": 8, "model_type": "pixtral"}
    config = t.Mistral3Config(text_config=language, vision_config=vision)
    base = klein(d.Flux2KleinPipeline)
    components = base.pipeline.components | {"tokenizer": tokenizer}
    components["text_encoder"] = t.Mistral3ForConditionalGeneration(config)
    components["transformer"] = flux_2_transformer(guidance_embeds=True)
    return Entry(d.Flux2Pipeline(**components), base.request | {"max_sequence_length": 512})
