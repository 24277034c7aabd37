"""Prompts that a pipeline changes before it tokenizes them: a bundle samples for each what diffusers samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from diffc.runtime import load
from tests.command_line import succeeded
from tests.texts import TEXTS
from tests.tolerances import PICTURE_OF_PROMPT
from tests.zoo import ZOO
from tests.zoo.sweep import build_options

WORDS = "a <cat>, a<dog>  and <ONE> <cat>_1"
"""Words of textual inversion, of several vectors and of one, beside what is none."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::diffc.runtime.errors.DiffcWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
]


def built(name: str, folder: Path, *options: str) -> tuple[Any, Path]:
    """Build the bundle of a pipeline of the zoo, for two images at once; CLIP's learns three words."""
    entry = ZOO[name]()
    if name == "StableDiffusionPipeline":
        for vectors, word in ((3, "<cat>"), (2, "<dog>"), (1, "<one>")):
            entry.pipeline.load_textual_inversion(torch.randn(vectors, 32), token=word)
    entry.pipeline.save_pretrained(folder / "model")
    succeeded("build", folder / "model", "-o", folder / "x.diffc", *build_options(entry), *options)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder / "model")
    pipeline.set_progress_bar_config(disable=True)
    request = {key: value for key, value in entry.request.items() if key not in (*entry.texts, "output_type")}

    def sample(prompt: list[str], negative_prompt: list[str], seed: int) -> np.ndarray:
        generator = torch.Generator("cpu").manual_seed(seed)
        texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        return np.asarray(pipeline(**texts, **request, output_type="np", generator=generator)[0])

    return sample, folder / "x.diffc"


@pytest.mark.parametrize(
    "name", ["SanaPipeline", "WanPipeline", "PixArtAlphaPipeline", "StableDiffusionPipeline", "ChromaPipeline"]
)
def test_prompts_sample_the_images_of_diffusers(name: str, tmp_path: Path) -> None:
    sample, bundle = built(name, tmp_path, "--batch", "2")
    sampler, texts = load(bundle), [*TEXTS, WORDS]
    for at, (one, two) in enumerate(zip(texts, [*texts[1:], texts[0]], strict=True)):
        prompt, negative_prompt = [one, two], [two, one]
        expected = sample(prompt, negative_prompt, at)
        images = sampler(prompt, negative_prompt=negative_prompt, seed=at, output="np")
        assert np.abs(images - expected).max() <= PICTURE_OF_PROMPT, prompt
