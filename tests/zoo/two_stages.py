"""Assemble pipelines of two stages, from a text to an embedding to an image."""

from string import ascii_lowercase
from typing import Any

import diffusers as d
import torch
import transformers as t
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenPrior
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import WuerstchenDiffNeXt
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from diffusers.pipelines.shap_e import ShapERenderer

from tests.zoo.components import UNET, amplified, clip, clip_vision, movq
from tests.zoo.entry import LENGTH, SIZE, WIDTH, Entry, entry, photo, photo_mask, texts, without


@entry("KandinskyV22PriorPipeline")
def kandinsky_prior() -> Entry:
    prior = d.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, embedding_dim=WIDTH, num_embeddings=LENGTH
    )
    scheduler = d.UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
    )
    pipeline = d.KandinskyV22PriorPipeline(
        prior=prior,
        image_encoder=clip_vision(),
        **clip(projected=True),
        scheduler=scheduler,
        image_processor=t.CLIPImageProcessor(size=16, crop_size=16),
    )
    return Entry(pipeline, without(texts(), *SIZE))


@entry("KandinskyV22Pipeline")
def kandinsky() -> Entry:
    denoiser = d.UNet2DConditionModel(
        **UNET,
        sample_size=8,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )
    request = without(texts(), "prompt", "negative_prompt")
    embeddings = {"image_embeds": torch.randn(1, WIDTH), "negative_image_embeds": torch.randn(1, WIDTH)}
    scheduler = d.DDPMScheduler(beta_start=0.00085, beta_end=0.012, variance_type="learned_range", clip_sample=True)
    return Entry(d.KandinskyV22Pipeline(denoiser, scheduler, movq()), request | embeddings)


@entry("StableCascadePriorPipeline")
def cascade_prior() -> Entry:
    prior = d.StableCascadeUNet(
        conditioning_dim=WIDTH,
        block_out_channels=(32, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_image_in_channels=24,
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
        switch_level=(False,),
    )
    scheduler = d.DDPMWuerstchenScheduler()
    pipeline = d.StableCascadePriorPipeline(**clip(projected=True), prior=amplified(prior), scheduler=scheduler)
    return Entry(pipeline, texts(height=256, width=256))


@entry("StableCascadeDecoderPipeline")
def cascade_decoder() -> Entry:
    plain, attending = ("SDCascadeResBlock", "SDCascadeTimestepBlock"), ("SDCascadeAttnBlock",)
    decoder = d.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        patch_size=2,
        conditioning_dim=WIDTH,
        block_out_channels=(16, 32),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(3, 2),
        block_types_per_layer=(plain, plain + attending),
        clip_text_pooled_in_channels=WIDTH,
        effnet_in_channels=16,
        timestep_conditioning_type=("sca",),
    )
    pipeline = d.StableCascadeDecoderPipeline(
        decoder=decoder,
        **clip(projected=True),
        scheduler=d.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=8),
        latent_dim_scale=4.0,
    )
    return Entry(pipeline, without(texts(image_embeddings=torch.randn(1, 16, 4, 4)), *SIZE))


def kandinsky_of(pipeline: type, *, in_channels: int = 4, **request: Any) -> Entry:
    """Put Kandinsky's components together to another pipeline, with an image to begin with."""
    base = kandinsky()
    parts = base.pipeline.components
    if in_channels != 4:
        config = dict(parts["unet"].config)
        options = {name: value for name, value in config.items() if not name.startswith("_")}
        parts["unet"] = d.UNet2DConditionModel(**options | {"in_channels": in_channels})
    return Entry(pipeline(**parts), base.request | {"image": photo()} | request)


@entry("KandinskyV22Img2ImgPipeline")
def kandinsky_image_to_image() -> Entry:
    return kandinsky_of(d.KandinskyV22Img2ImgPipeline, strength=0.7, num_inference_steps=5)


@entry("KandinskyV22InpaintPipeline")
def kandinsky_inpaint() -> Entry:
    return kandinsky_of(d.KandinskyV22InpaintPipeline, in_channels=9, mask_image=photo_mask())


@entry("WuerstchenPriorPipeline")
def wuerstchen_prior() -> Entry:
    prior = WuerstchenPrior(c_in=2, c=8, depth=2, c_cond=WIDTH, c_r=8, nhead=2)
    pipeline = d.WuerstchenPriorPipeline(**clip(), prior=amplified(prior, 1.5), scheduler=d.DDPMWuerstchenScheduler())
    return Entry(pipeline, texts(height=256, width=256))


@entry("WuerstchenDecoderPipeline")
def wuerstchen_decoder() -> Entry:
    decoder = WuerstchenDiffNeXt(
        c_cond=WIDTH,
        c_hidden=[16],
        nhead=[2],
        blocks=[4],
        level_config=["CTA"],
        clip_embd=WIDTH,
        inject_effnet=[True],
        effnet_embd=4,
    )
    pipeline = d.WuerstchenDecoderPipeline(
        decoder=decoder,
        **clip(),
        scheduler=d.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=8),
        latent_dim_scale=4.0,
    )
    return Entry(pipeline, without(texts(image_embeddings=torch.randn(1, 4, 4, 4)), *SIZE))


@entry("ShapEPipeline", refused="the pipeline refuses: .numpy() is not supported for tensor subclasses")
def shap_e() -> Entry:
    prior = d.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        embedding_dim=WIDTH,
        num_embeddings=32,
        embedding_proj_dim=WIDTH,
        time_embed_dim=64,
        clip_embed_dim=2 * WIDTH,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
    )
    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=WIDTH, d_hidden=8, background=(0.1, 0.1, 0.1)
    )
    scheduler = d.HeunDiscreteScheduler(
        beta_schedule="exp", prediction_type="sample", use_karras_sigmas=True, clip_sample=True
    )
    pipeline = d.ShapEPipeline(prior=prior, **clip(projected=True), scheduler=scheduler, shap_e_renderer=renderer)
    request = without(texts(frame_size=64, num_inference_steps=2, output_type="np"), "negative_prompt", *SIZE)
    return Entry(pipeline, request)


# Kandinsky 2.1 reads the text again where the image is sampled.


def kandinsky_2_1(pipeline: type, *, in_channels: int = 4, **request: Any) -> Entry:
    """Put a pipeline of Kandinsky 2.1's kind together."""
    unet = kandinsky().pipeline.unet
    options = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    options |= {"addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj"}
    options |= {"in_channels": in_channels, "class_embed_type": None}
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = t.XLMRobertaTokenizer(
        vocab=[*pieces, *((letter, -5.0) for letter in ascii_lowercase), ("<mask>", 0.0)], model_max_length=77
    )
    config = MCLIPConfig(
        numDims=WIDTH,
        transformerDimensions=WIDTH,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=64,
        max_position_embeddings=80,
    )
    scheduler = d.DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False)
    model = pipeline(
        text_encoder=MultilingualCLIP(config),
        tokenizer=tokenizer,
        unet=d.UNet2DConditionModel(**options),
        scheduler=scheduler,
        movq=movq(),
    )
    embeddings = {"image_embeds": torch.randn(1, WIDTH), "negative_image_embeds": torch.randn(1, WIDTH)}
    return Entry(model, texts(**embeddings, **request))


@entry("KandinskyPipeline")
def kandinsky_2_1_text() -> Entry:
    return kandinsky_2_1(d.KandinskyPipeline)


@entry("KandinskyInpaintPipeline")
def kandinsky_2_1_inpaint() -> Entry:
    images = {"image": photo(), "mask_image": photo_mask()}
    return kandinsky_2_1(d.KandinskyInpaintPipeline, in_channels=9, **images)
