"""Assemble further pipelines of the components of others: from an image, of a part of one, with an adapter."""

from typing import Any

import diffusers as d

from tests.zoo import stable_diffusion as sd
from tests.zoo import transformers as dit
from tests.zoo.components import flow_kl
from tests.zoo.entry import SIZE, WIDTH, Entry, entry, photo, photo_mask, rebuilt
from tests.zoo.longer_videos import sana_video
from tests.zoo.two_stages import kandinsky_2_1, kandinsky_prior
from tests.zoo.video_and_audio import ltx

FROM_IMAGE = {"image": photo(), "strength": 0.7, "num_inference_steps": 5}
INPAINT = {"image": photo(), "mask_image": photo_mask()}
XL = {"add_watermarker": False}


@entry("StableDiffusionXLImg2ImgPipeline")
def xl_image_to_image() -> Entry:
    return rebuilt(d.StableDiffusionXLImg2ImgPipeline, sd.sdxl(), *SIZE, parts=XL, **FROM_IMAGE)


@entry("StableDiffusionXLInpaintPipeline")
def xl_inpaint() -> Entry:
    return rebuilt(d.StableDiffusionXLInpaintPipeline, sd.sdxl(), parts=XL, strength=0.99, **INPAINT)


@entry("StableDiffusionXLInstructPix2PixPipeline")
def xl_instruct() -> Entry:
    parts = XL | {"unet": sd.sdxl_unet(6, cross_attention_dim=2 * WIDTH, in_channels=8)}
    request = {"image": photo(), "image_guidance_scale": 1.5}
    return rebuilt(d.StableDiffusionXLInstructPix2PixPipeline, sd.sdxl(), parts=parts, **request)


@entry("StableDiffusionXLAdapterPipeline")
def xl_adapter() -> Entry:
    adapter = d.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2)
    return rebuilt(d.StableDiffusionXLAdapterPipeline, sd.sdxl(), parts={"adapter": adapter}, image=photo())


@entry("LatentConsistencyModelImg2ImgPipeline")
def latent_consistency() -> Entry:
    parts = {"requires_safety_checker": False}
    request = FROM_IMAGE | {"num_inference_steps": 4}
    return rebuilt(d.LatentConsistencyModelImg2ImgPipeline, sd.latent_consistency(), *SIZE, parts=parts, **request)


@entry("StableDiffusion3Img2ImgPipeline")
def sd3_image_to_image() -> Entry:
    return rebuilt(d.StableDiffusion3Img2ImgPipeline, dit.stable_diffusion_3(), **FROM_IMAGE)


@entry("StableDiffusion3InpaintPipeline")
def sd3_inpaint() -> Entry:
    base = dit.stable_diffusion_3()
    config = dict(base.pipeline.transformer.config)
    options = {name: value for name, value in config.items() if not name.startswith("_")}
    transformer = d.SD3Transformer2DModel(**options | {"in_channels": 16, "out_channels": 16})
    parts = {"transformer": transformer, "vae": flow_kl(latent_channels=16)}
    return rebuilt(d.StableDiffusion3InpaintPipeline, base, parts=parts, strength=0.8, **INPAINT)


@entry("FluxKontextInpaintPipeline")
def kontext_inpaint() -> Entry:
    request: dict[str, Any] = INPAINT | {"strength": 0.8, "max_area": 256, "_auto_resize": False}
    return rebuilt(d.FluxKontextInpaintPipeline, dit.flux(), **request)


@entry("AnimateDiffSDXLPipeline")
def animated_xl() -> Entry:
    base = sd.sdxl()
    adapter = d.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
    )
    return rebuilt(d.AnimateDiffSDXLPipeline, base, parts={"motion_adapter": adapter}, num_frames=4)


@entry("SanaImageToVideoPipeline")
def sana_image_to_video() -> Entry:
    base = sana_video()
    parts = {"scheduler": d.FlowMatchEulerDiscreteScheduler(shift=3.0)}
    return rebuilt(d.SanaImageToVideoPipeline, base, parts=parts, image=photo(32))


# Kandinsky


@entry("KandinskyPriorPipeline")
def kandinsky_2_1_prior() -> Entry:
    return rebuilt(d.KandinskyPriorPipeline, kandinsky_prior())


@entry("KandinskyV22PriorEmb2EmbPipeline")
def kandinsky_prior_image() -> Entry:
    request = FROM_IMAGE | {"strength": 0.5}
    return rebuilt(d.KandinskyV22PriorEmb2EmbPipeline, kandinsky_prior(), **request)


@entry("KandinskyImg2ImgPipeline")
def kandinsky_2_1_image() -> Entry:
    entry = kandinsky_2_1(d.KandinskyImg2ImgPipeline, **FROM_IMAGE)
    parts = {"scheduler": d.DDIMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False)}
    return rebuilt(d.KandinskyImg2ImgPipeline, entry, parts=parts)


@entry("LTXConditionPipeline")
def ltx_condition() -> Entry:
    return rebuilt(
        d.LTXConditionPipeline,
        ltx(),
        parts={"scheduler": d.FlowMatchEulerDiscreteScheduler()},
        image=photo(32),
        image_cond_noise_scale=0.1,
    )
