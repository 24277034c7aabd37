"""Assemble LTX, LTX-2, Cosmos, Latte, Allegro, EasyAnimate and Sana's video."""

import sys
from typing import Any

import diffusers as d
import torch
import transformers as t
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

from tests.zoo.components import LANGUAGE_MODEL, amplified, betas, gemma, gemma_tokenizer, kl, qwen_2_5, t5
from tests.zoo.entry import LENGTH, WIDTH, Entry, entry, photo, texts, without
from tests.zoo.video_and_audio import ltx


@entry("LTXImageToVideoPipeline")
def ltx_image_to_video() -> Entry:
    base = ltx()
    return Entry(d.LTXImageToVideoPipeline(**base.pipeline.components), base.request | {"image": photo(32)})


# LTX-2: a video and its audio


def ltx_2(pipeline: type, **request: Any) -> Entry:
    """Put a pipeline of LTX-2's kind together."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder  # not among the library's names

    tokenizer = gemma_tokenizer(add_bos_token=True)
    language = LANGUAGE_MODEL | {"head_dim": 8, "vocab_size": len(tokenizer), "sliding_window": 16}
    language |= {"layer_types": ["sliding_attention", "full_attention"]}
    transformer = d.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=WIDTH,
        rope_double_precision=False,
    )
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
    )
    video = d.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_type=("spatiotemporal",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
    )
    audio = d.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=8,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )
    model = pipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        vae=video,
        audio_vae=audio,
        text_encoder=t.Gemma3ForCausalLM(t.Gemma3TextConfig(**language)),
        tokenizer=tokenizer,
        connectors=connectors,
        transformer=transformer,
        vocoder=vocoder,
    )
    settings = {"num_frames": 5, "max_sequence_length": LENGTH, "height": 32, "width": 32}
    scales = {"audio_guidance_scale": 4.0, "modality_scale": 1.0, "audio_modality_scale": 1.0}
    scales |= {"stg_scale": 0.0, "audio_stg_scale": 0.0, "guidance_rescale": 0.0, "audio_guidance_rescale": 0.0}
    return Entry(model, texts(**settings | scales | request))


@entry("LTX2Pipeline")
def ltx_2_text() -> Entry:
    return ltx_2(d.LTX2Pipeline)


@entry("LTX2ImageToVideoPipeline")
def ltx_2_image() -> Entry:
    return ltx_2(d.LTX2ImageToVideoPipeline, image=photo(32), image_crf=0)


@entry("LTX2ConditionPipeline")
def ltx_2_conditions() -> Entry:
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    first = LTX2VideoCondition(frames=photo(32), crf=0)
    last = LTX2VideoCondition(frames=photo(32, seed=2), index=1, strength=0.5, crf=0)
    return ltx_2(d.LTX2ConditionPipeline, conditions=[first, last])


# Cosmos


def cosmos(pipeline: type, scheduler: Any, *, vae: Any = None, channels: int = 5, **request: Any) -> Entry:
    """Put a pipeline of Cosmos together without its safety checker, which is a package of its own."""
    transformer = d.CosmosTransformer3DModel(
        in_channels=channels,
        out_channels=4 if vae is not None else 16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=True,
        extra_pos_embed_type="learnable" if vae is not None else None,
    )
    vae = vae if vae is not None else d.AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    vars(sys.modules[pipeline.__module__]).setdefault("CosmosSafetyChecker", None)
    parts = {**t5(), "transformer": transformer, "vae": vae, "scheduler": scheduler}
    return Entry(pipeline(**parts, safety_checker=Unchecked()), texts(max_sequence_length=LENGTH, **request))


class Unchecked(d.ModelMixin, d.ConfigMixin):
    """Stand for the safety checker, whose package a user of the zoo lacks: everything is safe."""

    config_name = "config.json"

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def check_text_safety(self, _prompt: str) -> bool:
        """Accept a text."""
        return True

    def check_video_safety(self, video: Any) -> Any:
        """Return the video as it is."""
        return video


def cosmos_vae() -> d.AutoencoderKLCosmos:
    """Make an autoencoder of factor 8 in space and time."""
    return d.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )


@entry(
    "CosmosTextToWorldPipeline",
    refused="the pipeline cannot be put together: The component <class",
    needs="torchvision",
)
def text_to_world() -> Entry:
    return cosmos(d.CosmosTextToWorldPipeline, edm(), vae=cosmos_vae(), channels=4, num_frames=9, **SQUARE)


@entry(
    "CosmosVideoToWorldPipeline",
    refused="the pipeline cannot be put together: The component <class",
    needs="torchvision",
)
def video_to_world() -> Entry:
    return cosmos(d.CosmosVideoToWorldPipeline, edm(), vae=cosmos_vae(), num_frames=9, image=photo(32), **SQUARE)


@entry(
    "Cosmos2TextToImagePipeline",
    refused="the pipeline cannot be put together: The component <class",
    needs="torchvision",
)
def cosmos_2_text_to_image() -> Entry:
    return cosmos(d.Cosmos2TextToImagePipeline, karras(), channels=16, **SQUARE)


@entry(
    "Cosmos2VideoToWorldPipeline",
    refused="the pipeline cannot be put together: The component <class",
    needs="torchvision",
)
def cosmos_2_video_to_world() -> Entry:
    return cosmos(d.Cosmos2VideoToWorldPipeline, karras(), channels=17, num_frames=5, image=photo(32), **SQUARE)


SQUARE = {"height": 32, "width": 32}


def edm() -> d.EDMEulerScheduler:
    """Make the scheduler of the first Cosmos."""
    return d.EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")


def karras() -> d.FlowMatchEulerDiscreteScheduler:
    """Make the scheduler of the second Cosmos."""
    return d.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)


# Latte, Allegro, EasyAnimate, Sana


@entry("LattePipeline")
def latte() -> Entry:
    transformer = d.LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=WIDTH,
        video_length=2,
    )
    scheduler = betas(d.DDIMScheduler, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipeline = d.LattePipeline(**t5(), vae=kl(), transformer=transformer, scheduler=scheduler)
    return Entry(pipeline, texts(video_length=2, clean_caption=False))


@entry("AllegroPipeline")
def allegro() -> Entry:
    transformer = d.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        sample_height=16,
        sample_width=16,
        sample_frames=6,
        caption_channels=WIDTH,
    )
    vae = d.AutoencoderKLAllegro(
        block_out_channels=(2, 2, 2, 2), layers_per_block=1, norm_num_groups=2, sample_size=128
    )
    scheduler = d.EulerAncestralDiscreteScheduler(beta_schedule="linear", timestep_spacing="leading")
    vae.enable_tiling()  # it decodes in no other way, and no file says so
    pipeline = d.AllegroPipeline(**t5(), vae=vae, transformer=transformer, scheduler=scheduler)
    size = {"height": 128, "width": 128, "num_frames": 24}  # of one tile, the smallest that the autoencoder has
    return Entry(pipeline, texts(**size, max_sequence_length=LENGTH, clean_caption=False))


@entry("EasyAnimatePipeline")
def easy_animate() -> Entry:
    transformer = d.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=16,
        sample_height=16,
        num_layers=1,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        time_position_encoding_type="3d_rope",
        add_norm_text_encoder=True,
    )
    vae = d.AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=[8, 8, 8, 8],
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipeline = d.EasyAnimatePipeline(vae=vae, **qwen_2_5(), transformer=transformer, scheduler=scheduler)
    return Entry(pipeline, texts(num_frames=5))


@entry("SanaVideoPipeline")
def sana_video() -> Entry:
    transformer = d.SanaVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        rope_max_seq_len=32,
    )
    vae = d.AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = d.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    pipeline = d.SanaVideoPipeline(**gemma(), vae=vae, transformer=transformer, scheduler=scheduler)
    size = {"use_resolution_binning": False, "max_sequence_length": LENGTH}
    return Entry(
        pipeline,
        texts(frames=5, height=32, width=32, **size, complex_human_instruction=["improve the prompt", "prompt "]),
    )


@entry("MotifVideoPipeline")
def motif() -> Entry:
    tokenizer = gemma_tokenizer(add_bos_token=True)
    language = LANGUAGE_MODEL | {"head_dim": 8, "vocab_size": len(tokenizer), "sliding_window": 16}
    language |= {"layer_types": ["sliding_attention", "full_attention"], "dropout_rate": 0.0}
    vision = {"hidden_size": 16, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}
    config = t.T5Gemma2EncoderConfig(text_config=language, vision_config=vision)
    transformer = d.MotifVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_decoder_layers=1,
        text_embed_dim=WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    pipeline = d.MotifVideoPipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=d.AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        text_encoder=T5Gemma2Encoder(config),
        tokenizer=tokenizer,
        transformer=amplified(transformer, 3),
        guider=d.ClassifierFreeGuidance(guidance_scale=4.0),
    )
    return Entry(pipeline, without(texts(num_frames=5, max_sequence_length=LENGTH), "guidance_scale"))
