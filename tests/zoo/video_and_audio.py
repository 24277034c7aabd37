"""Assemble pipelines that make videos and audio."""

from typing import Any

import diffusers as d

from tests.zoo.components import betas, t5
from tests.zoo.entry import LENGTH, SIZE, WIDTH, Entry, entry, texts, without


@entry("WanPipeline")
def wan() -> Entry:
    transformer = d.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=WIDTH, ffn_dim=32, num_layers=2, rope_max_seq_len=32
    )
    vae = d.AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = d.WanPipeline(**t5(multilingual=True), vae=vae, scheduler=scheduler, transformer=transformer)
    return Entry(pipeline, texts(num_frames=5, max_sequence_length=LENGTH))


def cogvideox_transformer(**config: Any) -> d.CogVideoXTransformer3DModel:
    """Return a tiny transformer of CogVideoX, of 9 frames of 2 x 2 latents."""
    return d.CogVideoXTransformer3DModel(
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=LENGTH,
        **config,
    )


@entry("CogVideoXPipeline")
def cogvideox() -> Entry:
    transformer = cogvideox_transformer(in_channels=4, num_attention_heads=4, attention_head_dim=8)
    vae = d.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    scheduler = betas(
        d.CogVideoXDDIMScheduler, prediction_type="v_prediction", clip_sample=False, rescale_betas_zero_snr=True
    )
    pipeline = d.CogVideoXPipeline(**t5(), vae=vae, transformer=transformer, scheduler=scheduler)
    return Entry(pipeline, texts(num_frames=9, max_sequence_length=LENGTH))


@entry("LTXPipeline")
def ltx() -> Entry:
    transformer = d.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=WIDTH,
    )
    vae = d.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    pipeline = d.LTXPipeline(scheduler=scheduler, vae=vae, **t5(), transformer=transformer)
    return Entry(pipeline, texts(height=32, width=32, num_frames=9, max_sequence_length=LENGTH))


@entry("MochiPipeline")
def mochi() -> Entry:
    transformer = d.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        max_sequence_length=LENGTH,
    )
    vae = d.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipeline = d.MochiPipeline(scheduler=scheduler, vae=vae, **t5(), transformer=transformer)
    return Entry(pipeline, texts(num_frames=7, max_sequence_length=LENGTH))


def audio(scheduler: Any) -> Entry:
    """Put a pipeline for two seconds of sound together."""
    transformer = d.StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        cross_attention_input_dim=16,
        time_proj_dim=8,
        global_states_input_dim=32,
    )
    vae = d.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 2],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        sampling_rate=16,
    )
    projection = d.StableAudioProjectionModel(text_encoder_dim=WIDTH, conditioning_dim=16, min_value=0, max_value=32)
    pipeline = d.StableAudioPipeline(
        vae=vae, **t5(), projection_model=projection, transformer=transformer, scheduler=scheduler
    )
    return Entry(pipeline, without(texts(audio_end_in_s=2.0), *SIZE))


@entry("StableAudioPipeline")
def stable_audio() -> Entry:
    return audio(d.CosineDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=500, solver_order=2))


@entry("StableAudioPipeline (EDM)")
def stable_audio_edm() -> Entry:
    scheduler = d.EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
    )
    return audio(scheduler)
