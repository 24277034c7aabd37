"""Assemble what was made of Wan: SkyReels among them."""

from typing import Any

import diffusers as d
import transformers as t

from tests.zoo.components import amplified, clip_vision, t5
from tests.zoo.entry import LENGTH, WIDTH, Entry, entry, photo, stand_in_for_ftfy, texts, without
from tests.zoo.given_images import feature_extractor, video

DENOISER: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": WIDTH,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def parts(transformer: type = d.WanTransformer3DModel, **changes: Any) -> dict[str, Any]:
    """Make the components that the pipelines share."""
    shift = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return {
        **t5(multilingual=True),
        "vae": d.AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "scheduler": d.UniPCMultistepScheduler(**shift),
        "transformer": amplified(transformer(**DENOISER | changes), 3),
    }


def wan(pipeline: type, components: dict[str, Any], *dropped: str, **changes: Any) -> Entry:
    """Put a pipeline together, and request a short video."""
    stand_in_for_ftfy(pipeline)
    request = texts(num_frames=5, max_sequence_length=LENGTH) | changes
    return Entry(pipeline(**components), without(request, *dropped))


def vision() -> dict[str, Any]:
    """Make an image encoder whose layers are read, and what prepares its images."""
    return {"image_encoder": t.CLIPVisionModel(clip_vision().config), "image_processor": feature_extractor()}


@entry("WanImageToVideoPipeline")
def image_to_video() -> Entry:
    components = parts(in_channels=36, image_dim=WIDTH) | vision()
    return wan(d.WanImageToVideoPipeline, components, image=photo())


@entry("WanImageToVideoPipeline (2.2, two denoisers)")
def image_to_video_of_two() -> Entry:
    second = d.WanTransformer3DModel(**DENOISER | {"in_channels": 36})
    components = parts(in_channels=36) | {"transformer_2": second, "boundary_ratio": 0.9}
    return wan(d.WanImageToVideoPipeline, components, image=photo(), guidance_scale_2=2.0)


@entry("WanVideoToVideoPipeline")
def video_to_video() -> Entry:
    frames = {"video": video(frames=5), "strength": 0.7, "num_inference_steps": 5}
    return wan(d.WanVideoToVideoPipeline, parts(), "num_frames", **frames)


@entry("WanVACEPipeline")
def vace() -> Entry:
    return wan(d.WanVACEPipeline, parts(d.WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=96))


@entry("WanVACEPipeline (video)")
def vace_video() -> Entry:
    components = parts(d.WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=96)
    masks = [frame.convert("L") for frame in video(frames=5)]
    return wan(d.WanVACEPipeline, components, video=video(frames=5), mask=masks)


@entry("WanAnimatePipeline")
def animate() -> Entry:
    components = parts(
        d.WanAnimateTransformer3DModel,
        in_channels=36,
        latent_channels=16,
        image_dim=WIDTH,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    videos = {"pose_video": video(frames=5), "face_video": video(frames=5), "segment_frame_length": 5}
    return wan(d.WanAnimatePipeline, components | vision(), "num_frames", image=photo(), **videos)


@entry("SkyReelsV2Pipeline")
def skyreels() -> Entry:
    return wan(d.SkyReelsV2Pipeline, parts(d.SkyReelsV2Transformer3DModel))


@entry("SkyReelsV2ImageToVideoPipeline")
def skyreels_image_to_video() -> Entry:
    components = parts(d.SkyReelsV2Transformer3DModel, in_channels=36, image_dim=WIDTH) | vision()
    return wan(d.SkyReelsV2ImageToVideoPipeline, components, image=photo())


@entry("SkyReelsV2DiffusionForcingPipeline")
def skyreels_forcing() -> Entry:
    components = parts(d.SkyReelsV2Transformer3DModel, inject_sample_info=True)
    return wan(d.SkyReelsV2DiffusionForcingPipeline, components, base_num_frames=5)


@entry("SkyReelsV2DiffusionForcingImageToVideoPipeline")
def skyreels_forcing_image() -> Entry:
    components = parts(d.SkyReelsV2Transformer3DModel, inject_sample_info=True)
    return wan(d.SkyReelsV2DiffusionForcingImageToVideoPipeline, components, image=photo(), base_num_frames=5)


@entry("LucyEditPipeline")
def lucy() -> Entry:
    return wan(d.LucyEditPipeline, parts(in_channels=32), video=video(frames=5))


@entry("ChronoEditPipeline")
def chrono_edit() -> Entry:
    components = parts(d.ChronoEditTransformer3DModel, in_channels=36, image_dim=WIDTH) | vision()
    return wan(d.ChronoEditPipeline, components, image=photo())
