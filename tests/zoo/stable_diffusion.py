"""Assemble Stable Diffusion and what was made of it, with Stable Diffusion XL."""

from dataclasses import replace
from typing import Any

import diffusers as d
import torch
import transformers as t

from tests.zoo.components import UNET, betas, clip, clip_vision, ddim, kl, sd, unet
from tests.zoo.entry import SIZE, WIDTH, Entry, entry, mask, picture, texts, without


@entry("StableDiffusionPipeline")
def stable_diffusion() -> Entry:
    return sd(d.StableDiffusionPipeline, texts())


@entry("StableDiffusionImg2ImgPipeline")
def image_to_image() -> Entry:
    return sd(
        d.StableDiffusionImg2ImgPipeline,
        without(texts(image=picture(), strength=0.7, num_inference_steps=5), *SIZE),
        scheduler=betas(d.EulerAncestralDiscreteScheduler, steps_offset=1),
    )


@entry("StableDiffusionInpaintPipeline (4 channels)")
def inpaint_4() -> Entry:
    return sd(d.StableDiffusionInpaintPipeline, texts(image=picture(), mask_image=mask()))


@entry("StableDiffusionInpaintPipeline (9 channels)")
def inpaint_9() -> Entry:
    request = texts(image=picture(), mask_image=mask())
    return sd(d.StableDiffusionInpaintPipeline, request, unet=unet(in_channels=9))


@entry("StableDiffusionInstructPix2PixPipeline")
def instruct_pix2pix() -> Entry:
    request = without(texts(image=picture(), image_guidance_scale=1.5), *SIZE)
    return sd(d.StableDiffusionInstructPix2PixPipeline, request, unet=unet(in_channels=8))


@entry("StableDiffusionUpscalePipeline")
def upscale() -> Entry:
    pipeline = d.StableDiffusionUpscalePipeline(
        vae=kl(scaling_factor=0.08333),
        **clip(),
        unet=unet(in_channels=7, num_class_embeds=1000),
        low_res_scheduler=d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        scheduler=ddim(),
    )
    return Entry(pipeline, without(texts(image=picture(size=8)), *SIZE))


@entry("StableDiffusionLatentUpscalePipeline")
def latent_upscale() -> Entry:
    pipeline = d.StableDiffusionLatentUpscalePipeline(
        vae=kl(),
        **clip(),
        unet=unet(in_channels=8, out_channels=5, time_cond_proj_dim=128 + WIDTH, sample_size=16),
        scheduler=d.EulerDiscreteScheduler(prediction_type="sample"),
    )
    return Entry(pipeline, without(texts(image=picture()), *SIZE))


@entry("StableDiffusionControlNetPipeline")
def controlnet() -> Entry:
    control = d.ControlNetModel(
        **UNET, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), conditioning_embedding_out_channels=(8, 16)
    )
    request = texts(image=picture(), controlnet_conditioning_scale=0.8, control_guidance_end=0.7)
    return sd(d.StableDiffusionControlNetPipeline, request, controlnet=control)


@entry("StableDiffusionControlNetPipeline (two)")
def two_controlnets() -> Entry:
    single = controlnet().pipeline.controlnet
    other = d.ControlNetModel.from_config(single.config)
    request = texts(image=[picture(), 1 - picture()], controlnet_conditioning_scale=[0.8, 0.5])
    return sd(d.StableDiffusionControlNetPipeline, request, controlnet=[single, other])


@entry("StableDiffusionAdapterPipeline")
def t2i_adapter() -> Entry:
    adapter = d.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2)
    return sd(d.StableDiffusionAdapterPipeline, texts(image=picture()), adapter=adapter)


@entry("StableDiffusionPipeline (IP-Adapter)")
def ip_adapter() -> Entry:
    made = sd(
        d.StableDiffusionPipeline,
        texts(ip_adapter_image=picture()),
        image_encoder=clip_vision(),
        feature_extractor=t.CLIPImageProcessor(size=16, crop_size=16),
    )
    crossing = [m for name, m in made.pipeline.unet.named_modules() if name.endswith("attn2")]
    keys = {
        f"{2 * n + 1}.to_{kind}_ip.weight": torch.randn_like(m.to_k.weight) * 0.2
        for n, m in enumerate(crossing)
        for kind in "kv"
    }
    projection = {"proj.weight": torch.randn(4 * WIDTH, WIDTH) * 0.2, "proj.bias": torch.zeros(4 * WIDTH)}
    norm = {"norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)}
    weights = {"image_proj": projection | norm, "ip_adapter": keys}
    made.pipeline.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    flat = {f"{part}.{name}": tensor for part, tensors in weights.items() for name, tensor in tensors.items()}
    return replace(made, ip_adapter=flat)


@entry("LatentConsistencyModelPipeline")
def latent_consistency() -> Entry:
    return sd(
        d.LatentConsistencyModelPipeline,
        without(texts(), "negative_prompt"),
        unet=unet(time_cond_proj_dim=32),
        scheduler=betas(d.LCMScheduler),
    )


@entry("AnimateDiffPipeline")
def animate_diff() -> Entry:
    adapter = d.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
    )
    pipeline = d.AnimateDiffPipeline(vae=kl(), **clip(), unet=unet(), motion_adapter=adapter, scheduler=ddim())
    return Entry(pipeline, texts(num_frames=4))


@entry("MarigoldDepthPipeline")
def marigold() -> Entry:
    pipeline = d.MarigoldDepthPipeline(
        unet=unet(in_channels=8),
        vae=kl(),
        scheduler=betas(d.DDIMScheduler, clip_sample=False, prediction_type="v_prediction"),
        **clip(),
        prediction_type="depth",
    )
    request = {"image": picture(), "num_inference_steps": 3, "processing_resolution": 0, "output_type": "pt"}
    return Entry(pipeline, request)


# Stable Diffusion XL


def sdxl_unet(sizes: int, **changes: Any) -> d.UNet2DConditionModel:
    """Make a UNet that is told the picture's sizes and the pooled text."""
    return unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=8 * sizes + WIDTH,
        **changes,
    )


@entry("StableDiffusionXLPipeline")
def sdxl() -> Entry:
    pipeline = d.StableDiffusionXLPipeline(
        vae=kl(),
        **clip(),
        **clip("_2", projected=True, hidden_act="gelu"),
        unet=sdxl_unet(6, cross_attention_dim=2 * WIDTH),
        scheduler=betas(d.EulerDiscreteScheduler, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )
    return Entry(pipeline, texts())


@entry("StableDiffusionXLImg2ImgPipeline (refiner)")
def sdxl_refiner() -> Entry:
    pipeline = d.StableDiffusionXLImg2ImgPipeline(
        vae=kl(),
        text_encoder=None,
        tokenizer=None,
        **clip("_2", projected=True, hidden_act="gelu"),
        unet=sdxl_unet(5),
        scheduler=betas(d.EulerDiscreteScheduler, steps_offset=1, timestep_spacing="leading"),
        requires_aesthetics_score=True,
        add_watermarker=False,
    )
    return Entry(pipeline, without(texts(image=picture(), strength=0.6, num_inference_steps=5), *SIZE))
