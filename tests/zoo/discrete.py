"""Assemble pipelines whose latents are tokens."""

from typing import Any

import diffusers as d
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import LearnedClassifierFreeSamplingEmbeddings

from tests.zoo.components import amplified, clip
from tests.zoo.entry import LENGTH, SIZE, WIDTH, Entry, entry, photo, photo_mask, texts, without


def amused(pipeline: type, request: dict[str, Any]) -> Entry:
    """Put a pipeline of aMUSEd's kind together."""
    transformer = d.UVit2DModel(
        hidden_size=8,
        cond_embed_dim=WIDTH,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=WIDTH,
        vocab_size=32,
        codebook_size=8,
        in_channels=8,
        block_out_channels=8,
        num_res_blocks=1,
        downsample=True,
        upsample=True,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
    )
    vqvae = d.VQModel(
        block_out_channels=(8,),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        num_vq_embeddings=8,
        lookup_from_codebook=True,
        mid_block_add_attention=False,
    )
    scheduler = d.AmusedScheduler(mask_token_id=31)
    parts = {"vqvae": vqvae, **clip(projected=True), "transformer": transformer, "scheduler": scheduler}
    return Entry(pipeline(**parts), request)


@entry("AmusedPipeline")
def amused_text() -> Entry:
    return amused(d.AmusedPipeline, texts())


@entry("AmusedImg2ImgPipeline")
def amused_image() -> Entry:
    return amused(d.AmusedImg2ImgPipeline, without(texts(image=photo(), strength=0.7, num_inference_steps=5), *SIZE))


@entry("AmusedInpaintPipeline")
def amused_inpaint() -> Entry:
    images = {"image": photo(), "mask_image": photo_mask(), "num_inference_steps": 5, "strength": 0.8}
    return amused(d.AmusedInpaintPipeline, without(texts(**images), *SIZE))


@entry("VQDiffusionPipeline", refused="the pipeline refuses: Sizes of tensors must match except in dimension 0")
def vq_diffusion() -> Entry:
    transformer = d.Transformer2DModel(
        attention_bias=True,
        cross_attention_dim=WIDTH,
        attention_head_dim=12,
        num_attention_heads=2,
        num_vector_embeds=12,
        num_embeds_ada_norm=12,
        norm_num_groups=8,
        sample_size=4,
        activation_fn="geglu-approximate",
    )
    vqvae = d.VQModel(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=8,
        num_vq_embeddings=12,
        vq_embed_dim=3,
    )
    pipeline = d.VQDiffusionPipeline(
        vqvae=vqvae,
        **clip(),
        transformer=amplified(transformer, 4),
        scheduler=d.VQDiffusionScheduler(num_vec_classes=12, num_train_timesteps=12),
        learned_classifier_free_sampling_embeddings=LearnedClassifierFreeSamplingEmbeddings(
            learnable=True, hidden_size=WIDTH, length=LENGTH
        ),
    )
    return Entry(pipeline, without(texts(), "negative_prompt", *SIZE))
