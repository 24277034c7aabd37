"""Assemble Krea 2, Ernie Image, LongCat Image, PRX on pixels and AnyFlow."""

from typing import Any

import diffusers as d
import transformers as t

from tests.zoo.components import LANGUAGE_MODEL, amplified, flow, flow_kl, image_token_ids, qwen_2_5, qwen_tokenizer
from tests.zoo.entry import LENGTH, WIDTH, Entry, entry, rebuilt, stand_in_for_ftfy, texts, without
from tests.zoo.flux import klein
from tests.zoo.newer_transformers import prx
from tests.zoo.qwen_image import vae as qwen_vae
from tests.zoo.wan import DENOISER, parts, wan


@entry("Krea2Pipeline")
def krea_2() -> Entry:
    tokenizer = qwen_tokenizer()
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6, "mrope_interleaved": True}
    language = LANGUAGE_MODEL | {"head_dim": 8, "vocab_size": len(tokenizer), "rope_parameters": rotary}
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 37, "out_hidden_size": WIDTH}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = t.Qwen3VLConfig(text_config=language, vision_config=vision, **image_token_ids(tokenizer))
    transformer = d.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    pipeline = d.Krea2Pipeline(
        scheduler=flow(),
        vae=qwen_vae(),
        text_encoder=t.Qwen3VLModel(config),
        tokenizer=tokenizer,
        transformer=amplified(transformer, 3),
        text_encoder_select_layers=(1, 2),
    )
    return Entry(pipeline, texts(max_sequence_length=64))


@entry("ErnieImagePipeline", refused="tokenizer returns no tensors for a text that only the run knows")
def ernie() -> Entry:
    tokenizer = qwen_tokenizer()
    language = LANGUAGE_MODEL | {"head_dim": 8, "vocab_size": len(tokenizer), "model_type": "mistral"}
    vision = {"hidden_size": 16, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "head_dim": 8, "model_type": "pixtral"}
    transformer = d.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    pipeline = d.ErnieImagePipeline(
        transformer=amplified(transformer),
        vae=klein(d.Flux2KleinPipeline).pipeline.vae,
        text_encoder=t.Mistral3Model(t.Mistral3Config(text_config=language, vision_config=vision)),
        tokenizer=tokenizer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return Entry(pipeline, texts(use_pe=False))


@entry("LongCatImagePipeline", refused="re.split of prompt, a text that only the run knows")
def longcat() -> Entry:
    transformer = d.LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 6, 6],
    )
    language = qwen_2_5()
    pipeline = d.LongCatImagePipeline(
        scheduler=flow(),
        vae=flow_kl(latent_channels=16),
        **language,
        text_processor=language["tokenizer"],
        transformer=amplified(transformer),
    )
    return Entry(pipeline, texts(enable_prompt_rewrite=False))


@entry("PRXPixelPipeline", refused="its configuration has [256000, 2304]")  # diffusers refuses to load it as well
def prx_pixel() -> Entry:
    base = prx()
    transformer = d.PRXTransformer2DModel(
        in_channels=3,
        patch_size=4,
        context_in_dim=WIDTH,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[4, 4],
        bottleneck_size=8,
        resolution_embeds=True,
    )
    stand_in_for_ftfy(d.PRXPixelPipeline)
    parts = {"transformer": amplified(transformer), "prompt_max_tokens": LENGTH}
    return rebuilt(d.PRXPixelPipeline, base, parts=parts)


@entry("AnyFlowPipeline")
def anyflow() -> Entry:
    options: dict[str, Any] = without(DENOISER, "rope_max_seq_len") | {"rope_max_seq_len": 32}
    components = parts() | {"scheduler": d.FlowMapEulerDiscreteScheduler(shift=3.0)}
    components["transformer"] = amplified(d.AnyFlowTransformer3DModel(**options))
    return wan(d.AnyFlowPipeline, components)
