"""Assemble pipelines that a second network controls, of the components of the pipelines without it."""

from typing import Any

import diffusers as d
import torch

from tests.zoo import stable_diffusion as sd
from tests.zoo import transformers as dit
from tests.zoo.entry import SIZE, WIDTH, Entry, entry, photo, photo_mask, rebuilt
from tests.zoo.two_stages import kandinsky, kandinsky_of

FROM_IMAGE = {"image": photo(), "control_image": photo(seed=2), "strength": 0.7, "num_inference_steps": 5}
INPAINT = {"image": photo(), "mask_image": photo_mask(), "control_image": photo(seed=2)}
SD = {"requires_safety_checker": False, "safety_checker": None, "feature_extractor": None}
SDXL = {"add_watermarker": False}


@entry("StableDiffusionControlNetImg2ImgPipeline")
def image_to_image() -> Entry:
    return rebuilt(d.StableDiffusionControlNetImg2ImgPipeline, sd.controlnet(), *SIZE, parts=SD, **FROM_IMAGE)


@entry("StableDiffusionControlNetInpaintPipeline")
def inpaint() -> Entry:
    return rebuilt(d.StableDiffusionControlNetInpaintPipeline, sd.controlnet(), parts=SD, **INPAINT)


def cross_connected(pipeline: type, base: Entry, unet: d.UNet2DConditionModel, options: dict[str, Any]) -> Entry:
    """Put a pipeline together whose control network is connected with the UNet both ways, which has two layers."""
    control = d.ControlNetXSAdapter.from_unet(
        unet, size_ratio=1, conditioning_embedding_out_channels=(8, 16), num_attention_heads=2
    )
    connected = d.UNetControlNetXSModel.from_unet(unet, control)
    saved = d.UNetControlNetXSModel.from_config(connected.config)  # ``from_unet`` normalizes in other groups
    saved.load_state_dict(connected.state_dict())
    return rebuilt(pipeline, base, parts=options | {"unet": saved, "controlnet": control}, image=photo())


@entry("StableDiffusionControlNetXSPipeline")
def xs() -> Entry:
    base = sd.stable_diffusion()
    return cross_connected(d.StableDiffusionControlNetXSPipeline, base, sd.unet(layers_per_block=2), SD)


@entry("AnimateDiffVideoToVideoControlNetPipeline")
def animated() -> Entry:
    base = sd.animate_diff()
    control = d.ControlNetModel.from_unet(sd.unet(), conditioning_embedding_out_channels=(8, 16))
    frames = {"video": [photo(seed=n) for n in range(4)], "conditioning_frames": [photo(seed=n) for n in range(4, 8)]}
    return rebuilt(
        d.AnimateDiffVideoToVideoControlNetPipeline,
        base,
        *("num_frames", *SIZE),
        parts={"controlnet": control},
        **frames,
        strength=0.7,
        num_inference_steps=5,
    )


# Stable Diffusion XL


def xl_controlled(pipeline: type, *dropped: str, **request: Any) -> Entry:
    """Put a pipeline of Stable Diffusion XL together with a network that sees an image."""
    base = sd.sdxl()
    control = d.ControlNetModel.from_unet(base.pipeline.unet, conditioning_embedding_out_channels=(8, 16))
    return rebuilt(pipeline, base, *dropped, parts=SDXL | {"controlnet": control}, **request)


@entry("StableDiffusionXLControlNetPipeline")
def xl_text_to_image() -> Entry:
    return xl_controlled(d.StableDiffusionXLControlNetPipeline, image=photo())


@entry("StableDiffusionXLControlNetImg2ImgPipeline")
def xl_image_to_image() -> Entry:
    return xl_controlled(d.StableDiffusionXLControlNetImg2ImgPipeline, *SIZE, **FROM_IMAGE)


@entry("StableDiffusionXLControlNetInpaintPipeline")
def xl_inpaint() -> Entry:
    return xl_controlled(d.StableDiffusionXLControlNetInpaintPipeline, strength=0.99, **INPAINT)


@entry("StableDiffusionXLControlNetXSPipeline")
def xl_xs() -> Entry:
    unet = sd.sdxl_unet(6, cross_attention_dim=2 * WIDTH, layers_per_block=2)
    return cross_connected(d.StableDiffusionXLControlNetXSPipeline, sd.sdxl(), unet, SDXL)


def union(pipeline: type, *dropped: str, **request: Any) -> Entry:
    """Put a pipeline of Stable Diffusion XL together with a network for several kinds of images."""
    base = sd.sdxl()
    config = base.pipeline.unet.config
    taken = ("block_out_channels", "down_block_types", "layers_per_block", "norm_num_groups", "cross_attention_dim")
    taken += ("attention_head_dim", "use_linear_projection", "addition_embed_type", "addition_time_embed_dim")
    taken += ("transformer_layers_per_block", "projection_class_embeddings_input_dim")
    control = d.ControlNetUnionModel(
        **{name: config[name] for name in taken},
        conditioning_embedding_out_channels=(8, 16),
        num_trans_channel=16,
        num_trans_head=2,
        num_proj_channel=16,
    )
    return rebuilt(pipeline, base, *dropped, parts=SDXL | {"controlnet": control}, control_mode=[0], **request)


@entry("StableDiffusionXLControlNetUnionPipeline")
def union_text_to_image() -> Entry:
    return union(d.StableDiffusionXLControlNetUnionPipeline, control_image=[photo()])


@entry("StableDiffusionXLControlNetUnionImg2ImgPipeline")
def union_image_to_image() -> Entry:
    request = FROM_IMAGE | {"control_image": [photo(seed=2)]}
    return union(d.StableDiffusionXLControlNetUnionImg2ImgPipeline, *SIZE, **request)


@entry("StableDiffusionXLControlNetUnionInpaintPipeline")
def union_inpaint() -> Entry:
    request = INPAINT | {"control_image": [photo(seed=2)]}
    return union(d.StableDiffusionXLControlNetUnionInpaintPipeline, strength=0.99, **request)


# Kandinsky 2.2


def hinted(pipeline: type, base: Entry, **request: Any) -> Entry:
    """Put a pipeline of Kandinsky 2.2's kind together whose denoiser takes a hint in, at an eighth of its size."""
    config = base.pipeline.unet.config
    options = {name: value for name, value in config.items() if not name.startswith("_")}
    denoiser = d.UNet2DConditionModel(**options | {"in_channels": 8, "addition_embed_type": "image_hint"})
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return rebuilt(pipeline, base, parts={"unet": denoiser}, hint=hint, **request)


@entry("KandinskyV22ControlnetPipeline")
def kandinsky_text_to_image() -> Entry:
    return hinted(d.KandinskyV22ControlnetPipeline, kandinsky())


@entry("KandinskyV22ControlnetImg2ImgPipeline")
def kandinsky_image_to_image() -> Entry:
    base = kandinsky_of(d.KandinskyV22Img2ImgPipeline, strength=0.7, num_inference_steps=5)
    return hinted(d.KandinskyV22ControlnetImg2ImgPipeline, base)


# Transformers


def sd3_controlnet(**changes: Any) -> d.SD3ControlNetModel:
    """Make the network that controls Stable Diffusion 3."""
    config = dit.stable_diffusion_3().pipeline.transformer.config
    taken = ("sample_size", "in_channels", "out_channels", "attention_head_dim", "num_attention_heads", "qk_norm")
    taken += ("joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size")
    return d.SD3ControlNetModel(**{name: config[name] for name in taken}, num_layers=1, **changes)


@entry("StableDiffusion3ControlNetPipeline")
def sd3_text_to_image() -> Entry:
    parts = {"controlnet": sd3_controlnet()}
    return rebuilt(d.StableDiffusion3ControlNetPipeline, dit.stable_diffusion_3(), parts=parts, control_image=photo())


@entry("StableDiffusion3ControlNetInpaintingPipeline")
def sd3_inpaint() -> Entry:
    parts = {"controlnet": sd3_controlnet(extra_conditioning_channels=1)}
    images = {"control_image": photo(), "control_mask": photo_mask()}
    return rebuilt(d.StableDiffusion3ControlNetInpaintingPipeline, dit.stable_diffusion_3(), parts=parts, **images)


def flux_controlled(pipeline: type, num_mode: int | None = None, **request: Any) -> Entry:
    """Put a pipeline of FLUX.1 together with a network that sees an image."""
    control = d.FluxControlNetModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
        num_mode=num_mode,
    )
    return rebuilt(pipeline, dit.flux(), parts={"controlnet": control}, **request)


@entry("FluxControlNetPipeline")
def flux_text_to_image() -> Entry:
    return flux_controlled(d.FluxControlNetPipeline, control_image=photo())


@entry("FluxControlNetPipeline (union)")
def flux_union() -> Entry:
    return flux_controlled(d.FluxControlNetPipeline, 3, control_image=photo(), control_mode=1)


@entry("FluxControlNetImg2ImgPipeline")
def flux_image_to_image() -> Entry:
    return flux_controlled(d.FluxControlNetImg2ImgPipeline, **FROM_IMAGE)


@entry("FluxControlNetInpaintPipeline")
def flux_inpaint() -> Entry:
    return flux_controlled(d.FluxControlNetInpaintPipeline, strength=0.7, num_inference_steps=5, **INPAINT)


@entry("HunyuanDiTControlNetPipeline")
def hunyuan_dit() -> Entry:
    base = dit.hunyuan_dit()
    config = base.pipeline.transformer.config
    taken = ("num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "sample_size", "hidden_size")
    taken += ("cross_attention_dim", "cross_attention_dim_t5", "pooled_projection_dim")
    control = d.HunyuanDiT2DControlNetModel(**{name: config[name] for name in taken}, transformer_num_layers=4)
    return rebuilt(d.HunyuanDiTControlNetPipeline, base, parts=SD | {"controlnet": control}, control_image=photo())


@entry("SanaControlNetPipeline")
def sana() -> Entry:
    base = dit.sana()
    config = base.pipeline.transformer.config
    taken = ("in_channels", "out_channels", "num_attention_heads", "attention_head_dim", "num_cross_attention_heads")
    taken += ("cross_attention_head_dim", "cross_attention_dim", "caption_channels", "sample_size")
    control = d.SanaControlNetModel(**{name: config[name] for name in taken}, num_layers=1)
    return rebuilt(d.SanaControlNetPipeline, base, parts={"controlnet": control}, control_image=photo(32))
