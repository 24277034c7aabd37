"""Describe models that people run today, whole, by the configurations that their publishers wrote: sizes, no weights.

A function returns the class of a pipeline, its components, and the type of its weights, as `checkpoints.write` takes
them, with the source of its sizes where it is not the defaults of diffusers' classes, which were written for the
published config.json. Tokenizers are small ones of the same kinds: they decide no sizes of weights.
"""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch
import transformers as t
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from benchmarks.checkpoints import Described, autoencoder, clip, tokenizer
from tests.zoo.components import byt5, gemma_tokenizer, llama_tokenizer, qwen_tokenizer, t5_tokenizer

# What several of them share


def flow(**options: Any) -> d.FlowMatchEulerDiscreteScheduler:
    """Make the scheduler of most of these models."""
    return d.FlowMatchEulerDiscreteScheduler(shift=3.0, **options)


def flux_autoencoder() -> d.AutoencoderKL:
    """Make the autoencoder of FLUX.1, which Z-Image and HiDream have as well (vae/config.json of FLUX.1-dev)."""
    return autoencoder(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159)


def qwen_3_4b() -> t.Qwen3Config:
    """Describe Qwen3-4B (config.json of Qwen/Qwen3-4B)."""
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    sizes = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
    rotary = {"rope_type": "default", "rope_theta": 1e6}
    return t.Qwen3Config(vocab_size=151936, tie_word_embeddings=True, rope_parameters=rotary, **heads, **sizes)


# Images


def flux_2_klein() -> Described:
    """Describe FLUX.2-klein-4B, which is distilled (diffusers, scripts/convert_flux2_to_diffusers.py)."""
    transformer = d.Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    )
    components = {
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": d.AutoencoderKLFlux2(),
        "text_encoder": t.Qwen3ForCausalLM(qwen_3_4b()),
        "tokenizer": qwen_tokenizer(),
        "transformer": transformer,
        "is_distilled": True,
    }
    return d.Flux2KleinPipeline, components, torch.bfloat16


def flux_2_dev() -> Described:
    """Describe FLUX.2-dev; its text encoder is Mistral Small 3.2, whose sizes are the defaults of transformers."""
    components = {
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": d.AutoencoderKLFlux2(),
        "text_encoder": t.Mistral3ForConditionalGeneration(t.Mistral3Config()),
        "tokenizer": qwen_tokenizer(),
        "transformer": d.Flux2Transformer2DModel(),
    }
    return d.Flux2Pipeline, components, torch.bfloat16


def z_image() -> Described:
    """Describe Z-Image (transformer/config.json of Tongyi-MAI/Z-Image-Turbo)."""
    components = {
        "scheduler": flow(),
        "vae": flux_autoencoder(),
        "text_encoder": t.Qwen3Model(qwen_3_4b()),
        "tokenizer": qwen_tokenizer(),
        "transformer": d.ZImageTransformer2DModel(axes_lens=[1536, 512, 512]),
    }
    return d.ZImagePipeline, components, torch.bfloat16


def hidream() -> Described:
    """Describe HiDream-I1 (transformer/config.json of HiDream-ai/HiDream-I1-Full) with Llama 3.1 8B."""
    transformer = d.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=16,
        caption_channels=[4096, 4096],
        axes_dims_rope=(64, 32, 32),
        llama_layers=[*range(32), *[31] * 16],
    )
    llama = llama_tokenizer(padding_side="right", model_max_length=128)
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8}
    config = t.LlamaConfig(vocab_size=128256, pad_token_id=llama.pad_token_id, **sizes)
    words = t5_tokenizer()
    words.model_max_length = 512
    t5 = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
    components = {
        "scheduler": flow(),
        "vae": flux_autoencoder(),
        "text_encoder": clip(projection_dim=768),
        "tokenizer": tokenizer(),
        "text_encoder_2": clip(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            projection_dim=1280,
            hidden_act="gelu",
        ),
        "tokenizer_2": tokenizer(),
        "text_encoder_3": t.T5EncoderModel(t.T5Config(feed_forward_proj="gated-gelu", **t5)),
        "tokenizer_3": words,
        "text_encoder_4": t.LlamaForCausalLM(config),
        "tokenizer_4": llama,
        "transformer": transformer,
    }
    return d.HiDreamImagePipeline, components, torch.bfloat16


# Videos


def hunyuan_video_1_5() -> Described:
    """Describe HunyuanVideo 1.5 at 480p (diffusers, scripts/convert_hunyuan_video1_5_to_diffusers.py)."""
    rotary = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "rope_parameters": rotary}
    qwen = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    t5 = {"d_model": 1472, "d_ff": 3584, "d_kv": 64, "num_heads": 6, "num_layers": 12, "vocab_size": 1510}
    components = {
        "text_encoder": t.Qwen2_5_VLTextModel(t.Qwen2_5_VLTextConfig(**qwen, **heads)),
        "tokenizer": qwen_tokenizer(),
        "transformer": d.HunyuanVideo15Transformer3DModel(task_type="t2v"),
        "vae": d.AutoencoderKLHunyuanVideo15(),
        "scheduler": d.FlowMatchEulerDiscreteScheduler(shift=5.0),
        "text_encoder_2": t.T5EncoderModel(t.T5Config(feed_forward_proj="gated-gelu", **t5)),
        "tokenizer_2": byt5()["tokenizer_2"],
        "guider": d.ClassifierFreeGuidance(guidance_scale=6.0),
    }
    return d.HunyuanVideo15Pipeline, components, torch.bfloat16


def ltx_2() -> Described:
    """Describe LTX-2 (diffusers, scripts/convert_ltx2_to_diffusers.py) with Gemma 3 12B."""
    rotary = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    sizes = {"hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "vocab_size": 262208}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "sliding_window": 1024}
    components = {
        "scheduler": d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        "vae": d.AutoencoderKLLTX2Video(),
        "audio_vae": d.AutoencoderKLLTX2Audio(),
        "text_encoder": t.Gemma3ForCausalLM(t.Gemma3TextConfig(rope_parameters=rotary, **sizes, **heads)),
        "tokenizer": gemma_tokenizer(add_bos_token=True),
        "connectors": LTX2TextConnectors(rope_type="split"),
        "transformer": d.LTX2VideoTransformer3DModel(rope_type="split"),
        "vocoder": LTX2Vocoder(),
    }
    return d.LTX2Pipeline, components, torch.bfloat16
