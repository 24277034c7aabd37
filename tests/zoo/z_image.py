"""Assemble Z-Image, Lumina and HunyuanImage."""

from typing import Any

import diffusers as d
import transformers as t

from tests.zoo.components import LANGUAGE_MODEL, byt5, flow_kl, gemma_tokenizer, kl, qwen_2_5, qwen_3
from tests.zoo.entry import LENGTH, WIDTH, Entry, entry, photo, photo_mask, texts, without

BEYOND = 40
"""The most tokens of a text: beyond 32, to multiples of which the transformer pads."""


def z_image(pipeline: type, request: dict[str, Any]) -> Entry:
    """Put a pipeline of Z-Image's kind together."""
    transformer = d.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[96, 16, 16],
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Entry(pipeline(scheduler=scheduler, vae=flow_kl(), **qwen_3(), transformer=transformer), request)


@entry("ZImagePipeline")
def z_image_text() -> Entry:
    return z_image(d.ZImagePipeline, texts(max_sequence_length=BEYOND))


@entry("ZImagePipeline (turbo)")
def z_image_turbo() -> Entry:
    return z_image(d.ZImagePipeline, without(texts(max_sequence_length=BEYOND, guidance_scale=0.0), "negative_prompt"))


@entry("ZImageImg2ImgPipeline", refused="aten.nonzero.default reads the value of a symbolic tensor")
def z_image_to_image() -> Entry:
    return z_image(d.ZImageImg2ImgPipeline, texts(max_sequence_length=BEYOND, image=photo(), strength=0.7))


@entry("ZImageInpaintPipeline", refused="aten.nonzero.default reads the value of a symbolic tensor")
def z_image_inpaint() -> Entry:
    request = texts(max_sequence_length=BEYOND, image=photo(), mask_image=photo_mask(), strength=1.0)
    return z_image(d.ZImageInpaintPipeline, request)


@entry(
    "LuminaPipeline", refused="tokenizer is called with padding=True, truncation=True: the text would decide the shape"
)
def lumina() -> Entry:
    transformer = d.LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=WIDTH,
    )
    tokenizer = gemma_tokenizer(add_bos_token=True)
    encoder = t.GemmaModel(t.GemmaConfig(**LANGUAGE_MODEL, head_dim=8, vocab_size=len(tokenizer)))
    pipeline = d.LuminaPipeline(
        transformer=transformer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        vae=kl(),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    return Entry(pipeline, texts(max_sequence_length=LENGTH, clean_caption=False, height=32, width=32))


@entry("HunyuanImagePipeline", refused="re.findall of prompt, a text that only the run knows")
def hunyuan_image() -> Entry:
    return hunyuan(guider=None)


@entry("HunyuanImagePipeline (guided)", refused="re.findall of prompt, a text that only the run knows")
def hunyuan_image_guided() -> Entry:
    guider = d.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1)
    return hunyuan(guider=guider)


def hunyuan(guider: Any) -> Entry:
    """Put a pipeline of HunyuanImage's kind together."""
    transformer = d.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=False,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        rope_axes_dim=(4, 4),
    )
    vae = d.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=0.476986,
    )
    pipeline = d.HunyuanImagePipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=vae,
        **qwen_2_5(),
        **byt5(),
        transformer=transformer,
        guider=guider,
    )
    request = texts(prompt='a red circle with "blue"')
    return Entry(pipeline, without(request, "guidance_scale", *(() if guider else ("negative_prompt",))))
