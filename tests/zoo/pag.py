"""Assemble pipelines with perturbed-attention guidance, of the components of the pipelines without it."""

from typing import Any

import diffusers as d

from tests.zoo import stable_diffusion as sd
from tests.zoo import transformers as dit
from tests.zoo.controlnets import xl_controlled
from tests.zoo.entry import SIZE, Entry, entry, photo, photo_mask, rebuilt

IMAGE = {"image": photo(), "strength": 0.7, "num_inference_steps": 5}


def perturbed(
    pipeline: type, base: Entry, *dropped: str, options: dict[str, Any] | None = None, **request: Any
) -> Entry:
    """Put the components of a pipeline together with guidance by perturbed attention."""
    return rebuilt(pipeline, base, *dropped, parts=options, pag_scale=3.0, **request)


SD = {"options": {"requires_safety_checker": False}}
SDXL = {"options": {"add_watermarker": False}}


@entry("StableDiffusionPAGPipeline")
def text_to_image() -> Entry:
    return perturbed(d.StableDiffusionPAGPipeline, sd.stable_diffusion(), **SD)


@entry("StableDiffusionPAGImg2ImgPipeline")
def image_to_image() -> Entry:
    return perturbed(d.StableDiffusionPAGImg2ImgPipeline, sd.stable_diffusion(), *SIZE, **SD, **IMAGE)


@entry("StableDiffusionPAGInpaintPipeline")
def inpaint() -> Entry:
    images = {"image": photo(), "mask_image": photo_mask()}
    return perturbed(d.StableDiffusionPAGInpaintPipeline, sd.stable_diffusion(), **SD, **images)


@entry("StableDiffusionControlNetPAGPipeline")
def controlnet() -> Entry:
    return perturbed(d.StableDiffusionControlNetPAGPipeline, sd.controlnet(), **SD, image=photo())


@entry("StableDiffusionControlNetPAGInpaintPipeline")
def controlnet_inpaint() -> Entry:
    images = {"image": photo(), "mask_image": photo_mask(), "control_image": photo(seed=2)}
    return perturbed(d.StableDiffusionControlNetPAGInpaintPipeline, sd.controlnet(), **SD, **images)


@entry("StableDiffusionXLPAGPipeline")
def xl_text_to_image() -> Entry:
    return perturbed(d.StableDiffusionXLPAGPipeline, sd.sdxl(), **SDXL, pag_adaptive_scale=0.004)


@entry("StableDiffusionXLPAGImg2ImgPipeline")
def xl_image_to_image() -> Entry:
    return perturbed(d.StableDiffusionXLPAGImg2ImgPipeline, sd.sdxl(), *SIZE, **SDXL, **IMAGE)


@entry("StableDiffusionXLPAGInpaintPipeline")
def xl_inpaint() -> Entry:
    images = {"image": photo(), "mask_image": photo_mask(), "strength": 0.99}
    return perturbed(d.StableDiffusionXLPAGInpaintPipeline, sd.sdxl(), **SDXL, **images)


@entry("StableDiffusionXLControlNetPAGPipeline")
def xl_controlnet() -> Entry:
    base = xl_controlled(d.StableDiffusionXLControlNetPipeline, image=photo())
    return perturbed(d.StableDiffusionXLControlNetPAGPipeline, base, **SDXL)


@entry("StableDiffusionXLControlNetPAGImg2ImgPipeline")
def xl_controlnet_image_to_image() -> Entry:
    base = xl_controlled(d.StableDiffusionXLControlNetPipeline, *SIZE, control_image=photo(seed=2), **IMAGE)
    return perturbed(d.StableDiffusionXLControlNetPAGImg2ImgPipeline, base, **SDXL)


@entry("StableDiffusion3PAGPipeline")
def sd3_text_to_image() -> Entry:
    return perturbed(d.StableDiffusion3PAGPipeline, dit.stable_diffusion_3())


@entry("StableDiffusion3PAGImg2ImgPipeline")
def sd3_image_to_image() -> Entry:
    return perturbed(d.StableDiffusion3PAGImg2ImgPipeline, dit.stable_diffusion_3(), **IMAGE)


@entry("PixArtSigmaPAGPipeline")
def pixart() -> Entry:
    return perturbed(d.PixArtSigmaPAGPipeline, dit.pixart_sigma())


@entry("SanaPAGPipeline")
def sana() -> Entry:
    return perturbed(d.SanaPAGPipeline, dit.sana())


@entry("HunyuanDiTPAGPipeline")
def hunyuan_dit() -> Entry:
    return perturbed(d.HunyuanDiTPAGPipeline, dit.hunyuan_dit(), **SD)


@entry("AnimateDiffPAGPipeline")
def animate_diff() -> Entry:
    return perturbed(d.AnimateDiffPAGPipeline, sd.animate_diff())
