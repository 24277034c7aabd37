"""Assemble Chroma, Sana Sprint, Bria, OmniGen, HiDream, Ovis, PRX and Nucleus."""

from typing import Any

import diffusers as d
import transformers as t
from torch import nn

from tests.zoo.components import (
    LANGUAGE_MODEL,
    amplified,
    clip,
    flow,
    flow_kl,
    image_token_ids,
    kl,
    llama_tokenizer,
    qwen_3,
    qwen_tokenizer,
    t5,
)
from tests.zoo.entry import LENGTH, SIZE, WIDTH, Entry, entry, photo, stand_in_for_ftfy, texts, without
from tests.zoo.qwen_image import vae as qwen_vae
from tests.zoo.transformers import chroma, sana


def chroma_of(pipeline: type, **request: Any) -> Entry:
    """Put Chroma's components together to another pipeline."""
    base = chroma()
    return Entry(pipeline(**base.pipeline.components), base.request | request)


@entry("ChromaImg2ImgPipeline")
def chroma_image_to_image() -> Entry:
    return chroma_of(d.ChromaImg2ImgPipeline, image=photo(), strength=0.7)


def sprint(pipeline: type, **request: Any) -> Entry:
    """Put Sana's components together to its distilled pipeline, whose denoiser reads the guidance scale."""
    base = sana()
    parts = base.pipeline.components
    config = dict(parts["transformer"].config)
    names = [name for name in config if not name.startswith("_") and name not in ("guidance_embeds", "qk_norm")]
    options = {name: config[name] for name in names}
    parts["transformer"] = d.SanaTransformer2DModel(**options, guidance_embeds=True, qk_norm="rms_norm_across_heads")
    parts["scheduler"] = d.SCMScheduler()
    request = without(base.request, "negative_prompt") | {"num_inference_steps": 2} | request
    return Entry(pipeline(**parts), request)


@entry("SanaSprintPipeline")
def sana_sprint() -> Entry:
    return sprint(d.SanaSprintPipeline)


@entry("SanaSprintImg2ImgPipeline")
def sana_sprint_image() -> Entry:
    return sprint(d.SanaSprintImg2ImgPipeline, image=photo(32), strength=0.6, intermediate_timesteps=None)


BRIA: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "axes_dims_rope": [0, 4, 4],
}


@entry("BriaPipeline", refused="a comparison of negative_prompt, a text that only the run knows")
def bria() -> Entry:
    transformer = d.BriaTransformer2DModel(**BRIA, joint_attention_dim=WIDTH)
    pipeline = d.BriaPipeline(transformer=transformer, scheduler=flow(), vae=flow_kl(), **t5())
    return Entry(pipeline, texts(max_sequence_length=LENGTH))


@entry("BriaFiboPipeline", refused="a comparison of prompt, a text that only the run knows")
def fibo() -> Entry:
    tokenizer = qwen_tokenizer()
    # The pipeline puts token 128000 where there is no text.
    language = t.SmolLM3Config(**LANGUAGE_MODEL, vocab_size=128001, pad_token_id=tokenizer.pad_token_id)
    transformer = d.BriaFiboTransformer2DModel(
        **BRIA | {"in_channels": 48}, joint_attention_dim=2 * WIDTH, text_encoder_dim=WIDTH
    )
    pipeline = d.BriaFiboPipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=d.AutoencoderKLWan(
            base_dim=16,
            decoder_base_dim=16,
            z_dim=48,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            latents_mean=[0.1] * 48,
            latents_std=[1.1] * 48,
        ),
        text_encoder=t.SmolLM3ForCausalLM(language),
        tokenizer=tokenizer,
    )
    return Entry(pipeline, texts(max_sequence_length=LENGTH, height=64, width=64))


@entry("HiDreamImagePipeline", refused="transformer does not fit its arguments in the pipeline")
def hidream() -> Entry:
    tokenizer = llama_tokenizer(padding_side="right", model_max_length=LENGTH)
    language = t.LlamaConfig(**LANGUAGE_MODEL, vocab_size=len(tokenizer), attn_implementation="eager")
    transformer = d.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=[0, 1],
        force_inference_output=True,
    )
    pipeline = d.HiDreamImagePipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_kl(),
        **clip(projected=True, max_position_embeddings=LENGTH),
        **clip("_2", projected=True),
        **t5("_3"),
        text_encoder_4=t.LlamaForCausalLM(language),
        tokenizer_4=tokenizer,
        transformer=transformer,
    )
    return Entry(pipeline, texts(max_sequence_length=LENGTH, num_inference_steps=2))


@entry("OvisImagePipeline")
def ovis() -> Entry:
    transformer = d.OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = d.OvisImagePipeline(scheduler=flow(), vae=flow_kl(), **qwen_3(), transformer=amplified(transformer))
    return Entry(pipeline, texts(max_sequence_length=LENGTH))


@entry("PRXPipeline", refused="its configuration has [256000, 2304]")  # diffusers refuses to load it as well
def prx() -> Entry:
    tokenizer = qwen_tokenizer(model_max_length=LENGTH)
    transformer = d.PRXTransformer2DModel(
        in_channels=4, context_in_dim=WIDTH, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=2, axes_dim=[4, 4]
    )
    module = LANGUAGE_MODEL | {"head_dim": 8, "vocab_size": len(tokenizer)}
    config = t.T5GemmaModuleConfig(**module, layer_types=["sliding_attention", "full_attention"], is_decoder=False)
    gemma = t.T5GemmaConfig(encoder=config, decoder=config, is_encoder_decoder=False, vocab_size=len(tokenizer))
    stand_in_for_ftfy(d.PRXPipeline)
    pipeline = d.PRXPipeline(
        transformer=transformer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=t.T5GemmaEncoderModel(gemma).encoder,
        tokenizer=tokenizer,
        vae=flow_kl(),
    )
    return Entry(pipeline, texts(use_resolution_binning=False) | SIZE)


@entry("OmniGenPipeline", refused="what occurs of prompt, a text that only the run knows", needs="torchvision")
def omnigen() -> Entry:
    tokenizer = llama_tokenizer()
    transformer = d.OmniGenTransformer2DModel(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=512,
        original_max_position_embeddings=512,
        time_step_dim=4,
        rope_scaling={"long_factor": [1.0, 1.1], "short_factor": [1.0, 1.0]},
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = kl(block_out_channels=(8, 8, 8, 16), **blocks)  # the pipeline counts on its factor of 8
    pipeline = d.OmniGenPipeline(transformer=transformer, scheduler=scheduler, vae=vae, tokenizer=tokenizer)
    return Entry(pipeline, without(texts(), "negative_prompt"))


@entry("NucleusMoEImagePipeline", refused="processor is called with pad_to_multiple_of=8")
def nucleus() -> Entry:
    tokenizer = qwen_tokenizer()
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6, "mrope_interleaved": True}
    language = LANGUAGE_MODEL | {"head_dim": 8, "vocab_size": len(tokenizer), "rope_parameters": rotary}
    language["num_hidden_layers"] = 3
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 37, "out_hidden_size": WIDTH}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = t.Qwen3VLConfig(
        text_config=language,
        vision_config=vision,
        **image_token_ids(tokenizer),
    )
    transformer = d.NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        dense_moe_strategy="leave_first_block_dense",
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=[0.0, 2.0],
    )
    for name, weight in transformer.named_parameters():
        if "experts" in name:
            nn.init.normal_(weight, std=0.1)  # diffusers leaves them as memory was
    pipeline = d.NucleusMoEImagePipeline(
        transformer=amplified(transformer, 3),
        scheduler=flow(),
        vae=qwen_vae(),
        text_encoder=t.Qwen3VLForConditionalGeneration(config),
        processor=tokenizer,
    )
    return Entry(pipeline, texts(max_sequence_length=512, return_index=-2))
