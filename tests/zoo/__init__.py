"""Assemble tiny pipelines with random weights, one entry for each way to make images, videos and audio.

Each is what its published checkpoints are, only smaller: the same components, the same kind of scheduler and options.
Nothing is loaded: tokenizers have a made-up vocabulary. Weights are the same each time.
"""

from tests.zoo import stable_diffusion, transformers, two_stages, video_and_audio  # noqa: F401  (they register)
from tests.zoo.entry import ZOO, Entry, mask, picture

__all__ = ["ZOO", "Entry", "mask", "picture"]
