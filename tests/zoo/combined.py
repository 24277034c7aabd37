"""Assemble pipelines that run another to the end first: its result is what the second one begins with."""

from typing import Any

import diffusers as d
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from tests.zoo import two_stages as two
from tests.zoo.components import UNET, amplified, clip, clip_vision, ddim, kl, unet
from tests.zoo.entry import LENGTH, WIDTH, Entry, entry, photo, photo_mask, texts, without
from tests.zoo.given_images import feature_extractor

PRIOR = {"prior_num_inference_steps": 2, "prior_guidance_scale": 4.0}
IMAGE = {"image": photo(), "strength": 0.7, "num_inference_steps": 5}
INPAINT = {"image": photo(), "mask_image": photo_mask()}


def combined(pipeline: type, prior: Entry, decoder: Entry, **request: Any) -> Entry:
    """Put the components of two pipelines together, those of the first with a prefix."""
    first = {f"prior_{name}": component for name, component in prior.pipeline.components.items()}
    return Entry(pipeline(**decoder.pipeline.components, **first), texts(**PRIOR, **request))


# Kandinsky


def kandinsky_2_2(pipeline: type, in_channels: int = 4, **request: Any) -> Entry:
    """Put a pipeline of Kandinsky 2.2's kind together."""
    decoder = two.kandinsky_of(d.KandinskyV22Pipeline, in_channels=in_channels)
    return combined(pipeline, two.kandinsky_prior(), decoder, **request)


def kandinsky_2_1(pipeline: type, decoder: type, in_channels: int = 4, **request: Any) -> Entry:
    """Put a pipeline of Kandinsky 2.1's kind together."""
    return combined(pipeline, two.kandinsky_prior(), two.kandinsky_2_1(decoder, in_channels=in_channels), **request)


@entry("KandinskyV22CombinedPipeline")
def text_to_image() -> Entry:
    return kandinsky_2_2(d.KandinskyV22CombinedPipeline)


@entry("KandinskyV22Img2ImgCombinedPipeline")
def image_to_image() -> Entry:
    return kandinsky_2_2(d.KandinskyV22Img2ImgCombinedPipeline, **IMAGE)


@entry("KandinskyV22InpaintCombinedPipeline")
def inpaint() -> Entry:
    return kandinsky_2_2(d.KandinskyV22InpaintCombinedPipeline, in_channels=9, **INPAINT)


@entry("KandinskyCombinedPipeline")
def text_to_image_2_1() -> Entry:
    return kandinsky_2_1(d.KandinskyCombinedPipeline, d.KandinskyPipeline)


@entry("KandinskyImg2ImgCombinedPipeline")
def image_to_image_2_1() -> Entry:
    return kandinsky_2_1(d.KandinskyImg2ImgCombinedPipeline, d.KandinskyPipeline, **IMAGE)


@entry("KandinskyInpaintCombinedPipeline")
def inpaint_2_1() -> Entry:
    return kandinsky_2_1(d.KandinskyInpaintCombinedPipeline, d.KandinskyPipeline, in_channels=9, **INPAINT)


# Würstchen and its successor


@entry("StableCascadeCombinedPipeline")
def cascade() -> Entry:
    prior, decoder = two.cascade_prior(), two.cascade_decoder()
    request = PRIOR | {"decoder_guidance_scale": 1.1, "num_inference_steps": 2, "height": 256, "width": 256}
    shared = ("text_encoder", "tokenizer")
    first = {f"prior_{name}": component for name, component in prior.pipeline.components.items()}
    parts = decoder.pipeline.components | {name: prior.pipeline.components[name] for name in shared}
    pipeline = d.StableCascadeCombinedPipeline(**parts, **first)
    return Entry(pipeline, without(texts(**request), "guidance_scale"))


@entry("WuerstchenCombinedPipeline", refused="generates other noise for several images than for one")
def wuerstchen() -> Entry:
    prior, decoder = two.wuerstchen_prior(), two.wuerstchen_decoder()
    first = {f"prior_{name}": component for name, component in prior.pipeline.components.items()}
    model = WuerstchenPrior(c_in=4, c=8, depth=2, c_cond=WIDTH, c_r=8, nhead=2)
    first["prior_prior"] = amplified(model, 1.5)
    pipeline = d.WuerstchenCombinedPipeline(**decoder.pipeline.components, **first)
    request = PRIOR | {"decoder_guidance_scale": 1.1, "num_inference_steps": 2, "height": 256, "width": 256}
    return Entry(pipeline, without(texts(**request), "guidance_scale"))


# UnCLIP


def prior_transformer() -> d.PriorTransformer:
    """Make what predicts the embedding of an image from that of a text."""
    return d.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, embedding_dim=WIDTH, num_embeddings=LENGTH
    )


def unclip_scheduler() -> d.UnCLIPScheduler:
    """Make the scheduler of such a prior."""
    return d.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0)


@entry("StableUnCLIPPipeline")
def stable_unclip() -> Entry:
    second = {"tokenizer": "prior_tokenizer", "text_encoder": "prior_text_encoder"}
    prior = {second[name]: component for name, component in clip(projected=True).items()}
    pipeline = d.StableUnCLIPPipeline(
        **prior,
        prior=prior_transformer(),
        prior_scheduler=unclip_scheduler(),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
        image_noising_scheduler=d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        **clip(),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH),
        scheduler=ddim(),
        vae=kl(),
    )
    return Entry(pipeline, texts(**PRIOR, noise_level=10))


@entry("LDMTextToImagePipeline")
def latent_diffusion() -> Entry:
    parts = clip(max_position_embeddings=77)
    pipeline = d.LDMTextToImagePipeline(
        vqvae=kl(), bert=parts["text_encoder"], tokenizer=parts["tokenizer"], unet=unet(), scheduler=ddim()
    )
    return Entry(pipeline, without(texts(height=64, width=64), "negative_prompt"))


@entry("LDMSuperResolutionPipeline")
def latent_super_resolution() -> Entry:
    denoiser = d.UNet2DModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        in_channels=6,
        out_channels=3,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    autoencoder = d.VQModel(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
    )
    pipeline = d.LDMSuperResolutionPipeline(vqvae=autoencoder, unet=denoiser, scheduler=d.DDIMScheduler())
    return Entry(pipeline, {"image": photo(32), "num_inference_steps": 3, "output_type": "pt"})


def super_resolution() -> d.UNet2DModel:
    """Make what enlarges an image to 16 pixels."""
    return d.UNet2DModel(
        sample_size=16,
        in_channels=6,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
    )


def unclip_decoder() -> dict[str, Any]:
    """Make what samples an image of an embedding and enlarges it, as the components of a pipeline."""
    decoder = d.UNet2DConditionModel(
        **UNET,
        sample_size=8,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    return {
        "decoder": decoder,
        "text_proj": UnCLIPTextProjModel(clip_embeddings_dim=WIDTH, time_embed_dim=64, cross_attention_dim=WIDTH),
        "super_res_first": super_resolution(),
        "super_res_last": super_resolution(),
        "decoder_scheduler": d.UnCLIPScheduler(variance_type="learned_range"),
        "super_res_scheduler": d.UnCLIPScheduler(variance_type="fixed_small_log"),
        **clip(projected=True),
    }


UNCLIP = {"decoder_num_inference_steps": 4, "super_res_num_inference_steps": 3, "decoder_guidance_scale": 3.0}


@entry("UnCLIPPipeline")
def unclip() -> Entry:
    parts = unclip_decoder() | {"prior": prior_transformer(), "prior_scheduler": unclip_scheduler()}
    return Entry(d.UnCLIPPipeline(**parts), {"prompt": "a red circle", "output_type": "pt"} | PRIOR | UNCLIP)


@entry("UnCLIPImageVariationPipeline")
def unclip_image_variation() -> Entry:
    parts = unclip_decoder() | {"image_encoder": clip_vision(), "feature_extractor": feature_extractor()}
    request: dict[str, Any] = {"image": photo(), "output_type": "pt"}
    return Entry(d.UnCLIPImageVariationPipeline(**parts), request | UNCLIP)
