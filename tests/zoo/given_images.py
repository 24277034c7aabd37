"""Assemble what was made of Stable Diffusion for images that a request brings, and Stable Video Diffusion."""

from typing import Any

import diffusers as d
import transformers as t
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from tests.zoo.components import clip, clip_vision, ddim, kl, unet
from tests.zoo.entry import SIZE, WIDTH, Entry, entry, photo, texts, without
from tests.zoo.stable_diffusion import marigold, stable_diffusion


def feature_extractor() -> t.CLIPImageProcessor:
    """Make what scales, crops and normalizes an image for the image encoder."""
    return t.CLIPImageProcessor(size=16, crop_size=16)


@entry("StableDiffusionImageVariationPipeline")
def image_variation() -> Entry:
    pipeline = d.StableDiffusionImageVariationPipeline(
        vae=kl(),
        image_encoder=clip_vision(),
        unet=unet(),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=feature_extractor(),
        requires_safety_checker=False,
    )
    return Entry(pipeline, without(texts(image=photo()), "prompt", "negative_prompt"))


@entry("StableUnCLIPImg2ImgPipeline")
def unclip() -> Entry:
    pipeline = d.StableUnCLIPImg2ImgPipeline(
        feature_extractor=feature_extractor(),
        image_encoder=clip_vision(),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
        image_noising_scheduler=d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        **clip(),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH),
        scheduler=ddim(),
        vae=kl(),
    )
    return Entry(pipeline, texts(image=photo(), noise_level=10))


@entry("StableVideoDiffusionPipeline")
def stable_video() -> Entry:
    denoiser = d.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=(2, 4),
        num_frames=3,
    )
    vae = d.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )
    scheduler = d.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    pipeline = d.StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=clip_vision(224, 32),
        unet=denoiser,
        scheduler=scheduler,
        feature_extractor=feature_extractor(),
    )
    request = {"image": photo(), "num_frames": 3, "max_guidance_scale": 2.5, "decode_chunk_size": 2}
    return Entry(pipeline, without(texts(**request), "prompt", "negative_prompt", "guidance_scale"))


def marigold_of(pipeline: type, **options: Any) -> Entry:
    """Put Marigold's components together to another pipeline."""
    base = marigold()
    components = base.pipeline.components
    if "target_properties" in options:
        components["unet"] = unet(in_channels=12, out_channels=8)
    return Entry(pipeline(**components, **options), base.request | {"image": photo()})


@entry("MarigoldNormalsPipeline")
def normals() -> Entry:
    return marigold_of(d.MarigoldNormalsPipeline, prediction_type="normals")


@entry("MarigoldIntrinsicsPipeline")
def intrinsics() -> Entry:
    properties: dict[str, Any] = {"target_names": ["albedo", "material"]}
    properties["albedo"] = {"prediction_space": "linear", "up_to_scale": False}
    properties["material"] = {"prediction_space": "stack", "sub_target_names": ["roughness", "metallicity", None]}
    options = {"prediction_type": "intrinsics", "target_properties": properties}
    return marigold_of(d.MarigoldIntrinsicsPipeline, **options)


@entry("StableDiffusionDepth2ImgPipeline")
def depth_to_image() -> Entry:
    depth = t.DPTConfig(
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=16,
        is_hybrid=False,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16,
    )
    base = stable_diffusion().pipeline.components
    extractor = t.DPTImageProcessor(size={"height": 32, "width": 32})
    parts = {key: base[key] for key in ("vae", "text_encoder", "tokenizer", "scheduler")}
    pipeline = d.StableDiffusionDepth2ImgPipeline(
        **parts, unet=unet(in_channels=5), depth_estimator=t.DPTForDepthEstimation(depth), feature_extractor=extractor
    )
    return Entry(pipeline, without(texts(image=photo(32), strength=0.7, num_inference_steps=5), *SIZE))


# AnimateDiff


def animated(pipeline: type, *dropped: str, controlnet: Any = None, **request: Any) -> Entry:
    """Put AnimateDiff's components together to another pipeline."""
    adapter = d.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
    )
    parts = {"vae": kl(), **clip(), "unet": unet(), "motion_adapter": adapter, "scheduler": ddim()}
    if controlnet is not None:
        parts["controlnet"] = controlnet
    return Entry(pipeline(**parts), without(texts(**request), *dropped))


FRAMES = 4


def video(size: int = 16, frames: int = FRAMES) -> list[Any]:
    """Make a video as users bring it."""
    return [photo(size, seed) for seed in range(frames)]


@entry("AnimateDiffControlNetPipeline")
def animate_controlnet() -> Entry:
    control = d.ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=(8, 16))
    request = {"num_frames": FRAMES, "conditioning_frames": video()}
    return animated(d.AnimateDiffControlNetPipeline, controlnet=control, **request)


@entry("AnimateDiffSparseControlNetPipeline")
def animate_sparse_controlnet() -> Entry:
    control = d.SparseControlNetModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        conditioning_embedding_out_channels=(8, 16),
        motion_num_attention_heads=2,
        conditioning_channels=3,
        use_simplified_condition_embedding=False,
    )
    request = {"num_frames": FRAMES, "conditioning_frames": video(frames=2), "controlnet_frame_indices": [0, 3]}
    return animated(d.AnimateDiffSparseControlNetPipeline, controlnet=control, **request)


@entry("AnimateDiffVideoToVideoPipeline")
def animate_video() -> Entry:
    request = {"video": video(), "strength": 0.7, "num_inference_steps": 5}
    return animated(d.AnimateDiffVideoToVideoPipeline, **request)
