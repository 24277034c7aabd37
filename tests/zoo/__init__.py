"""Assemble tiny pipelines with random weights, one entry for each way to make images, videos and audio.

Each is what its published checkpoints are, only smaller: the same components, the same kind of scheduler and options.
Nothing is loaded: tokenizers have a made-up vocabulary. Weights are the same each time.

An entry that diffc refuses says so, ``@entry("…", refused="part of the message")``, and one that it gets wrong today,
``wrong="by how much, and why"``. The tests assert both: who mends one removes its mark, and `docs/pipelines.md` is
written again. ``needs="package"`` leaves an entry out where diffusers lacks what it needs.
"""

from tests.zoo import (  # noqa: F401  (they register)
    audio,
    cog,
    combined,
    controlnets,
    deepfloyd,
    derived,
    discrete,
    flux,
    given_images,
    hunyuan_video,
    kandinsky,
    longer_videos,
    newer_transformers,
    newest,
    older,
    pag,
    qwen_image,
    stable_diffusion,
    transformers,
    two_stages,
    video_and_audio,
    wan,
    z_image,
)
from tests.zoo.entry import ABSENT, REFUSED, WRONG, ZOO, Entry, mask, picture

__all__ = ["ABSENT", "REFUSED", "WRONG", "ZOO", "Entry", "mask", "picture"]
