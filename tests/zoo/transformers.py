"""Assemble pipelines whose denoiser is a transformer, and the first of all, DDPM."""

from typing import Any

import diffusers as d
import transformers as t

from tests.zoo.components import amplified, bert_tokenizer, betas, clip, flow_kl, gemma, kl, t5
from tests.zoo.entry import LENGTH, WIDTH, Entry, entry, texts, without


@entry("DDPMPipeline")
def ddpm() -> Entry:
    denoiser = d.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    return Entry(d.DDPMPipeline(denoiser, d.DDPMScheduler()), {"num_inference_steps": 3, "output_type": "np"})


@entry("DiTPipeline")
def dit() -> Entry:
    transformer = d.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, out_channels=8, num_layers=2, sample_size=8
    )
    request = {"class_labels": [1], "guidance_scale": 4.0, "num_inference_steps": 3, "output_type": "np"}
    return Entry(d.DiTPipeline(transformer, kl(), d.DDIMScheduler(clip_sample=False)), request)


@entry("StableDiffusion3Pipeline")
def stable_diffusion_3() -> Entry:
    transformer = d.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    pipeline = d.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_kl(),
        **clip(projected=True),
        **clip("_2", projected=True, hidden_act="gelu"),
        **t5("_3", width=2 * WIDTH),
    )
    return Entry(pipeline, texts(max_sequence_length=LENGTH))


def flux_transformer(**changes: Any) -> d.FluxTransformer2DModel:
    """Make the denoiser of FLUX.1."""
    settings: dict[str, Any] = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 4, 8),
    }
    return amplified(d.FluxTransformer2DModel(**settings | changes))


@entry("FluxPipeline")
def flux() -> Entry:
    pipeline = d.FluxPipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flow_kl(),
        **clip(),
        **t5("_2"),
        transformer=flux_transformer(),
    )
    return Entry(pipeline, without(texts(max_sequence_length=LENGTH), "negative_prompt"))


@entry("FluxPipeline (true guidance)")
def flux_guided() -> Entry:
    made = flux()
    request = made.request | {"negative_prompt": "blue", "true_cfg_scale": 3.0}
    return Entry(made.pipeline, request)


@entry("ChromaPipeline")
def chroma() -> Entry:
    transformer = d.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return Entry(
        d.ChromaPipeline(scheduler=scheduler, vae=flow_kl(), **t5(), transformer=transformer),
        texts(max_sequence_length=LENGTH),
    )


PIXART: dict[str, Any] = {
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "cross_attention_dim": 24,
    "num_layers": 2,
    "sample_size": 8,
    "caption_channels": WIDTH,
}
PIXART_REQUEST = {"max_sequence_length": LENGTH, "clean_caption": False, "use_resolution_binning": False}


@entry("PixArtAlphaPipeline")
def pixart_alpha() -> Entry:
    # The pipeline passes the picture's size to models of 1024 pixels only, that is, of this sample size.
    transformer = d.PixArtTransformer2DModel(**PIXART | {"sample_size": 128}, use_additional_conditions=True)
    scheduler = betas(d.DPMSolverMultistepScheduler)
    pipeline = d.PixArtAlphaPipeline(**t5(), vae=kl(), transformer=transformer, scheduler=scheduler)
    return Entry(pipeline, texts(**PIXART_REQUEST))


@entry("PixArtSigmaPipeline")
def pixart_sigma() -> Entry:
    transformer = d.PixArtTransformer2DModel(**PIXART, use_additional_conditions=False)
    scheduler = betas(d.DPMSolverMultistepScheduler)
    pipeline = d.PixArtSigmaPipeline(**t5(), vae=kl(), transformer=transformer, scheduler=scheduler)
    return Entry(pipeline, texts(**PIXART_REQUEST))


@entry("SanaPipeline")
def sana() -> Entry:
    transformer = d.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    )
    vae = d.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    scheduler = d.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = d.SanaPipeline(**gemma(), vae=vae, transformer=transformer, scheduler=scheduler)
    size = {"height": 32, "width": 32, "use_resolution_binning": False, "max_sequence_length": LENGTH}
    return Entry(pipeline, texts(**size, complex_human_instruction=["improve the prompt", "prompt "]))


@entry("HunyuanDiTPipeline")
def hunyuan_dit() -> Entry:
    transformer = d.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=4,  # of fewer, no connection skips a layer
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=16,
    )
    bert = t.BertConfig(
        vocab_size=64, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    )
    components = {"text_encoder": t.BertModel(bert), "tokenizer": bert_tokenizer()}
    scheduler = betas(d.DDPMScheduler, prediction_type="v_prediction", clip_sample=False)
    pipeline = d.HunyuanDiTPipeline(
        vae=kl(),
        **components,
        **t5("_2"),
        transformer=transformer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return Entry(pipeline, texts(use_resolution_binning=False))


@entry("AuraFlowPipeline")
def aura_flow() -> Entry:
    transformer = d.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=1.73)
    pipeline = d.AuraFlowPipeline(
        **t5(multilingual=True), vae=kl(), transformer=amplified(transformer), scheduler=scheduler
    )
    return Entry(pipeline, texts(max_sequence_length=LENGTH))


@entry("Lumina2Pipeline", refused="aten._local_scalar_dense.default reads the value of a symbolic tensor")
def lumina_2() -> Entry:
    transformer = d.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 16, 16),
        cap_feat_dim=WIDTH,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=6.0)
    pipeline = d.Lumina2Pipeline(transformer=amplified(transformer, 4.5), scheduler=scheduler, vae=flow_kl(), **gemma())
    return Entry(pipeline, texts(max_sequence_length=2 * LENGTH, system_prompt="paint well"))
