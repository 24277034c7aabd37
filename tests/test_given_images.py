"""Sample several images of one given image, and of several, with one seed and with several, beside diffusers.

Pipelines that prepare images themselves are handed images, here as by users: noise of 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffc.compiler import write_bundle
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.pipeline import Sampling, trace_pipeline
from diffc.runtime import RequestError, Sampler
from tests.tolerances import PICTURE
from tests.zoo import ZOO, Entry
from tests.zoo.sweep import sweep

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")

NAMES = (
    "StableDiffusionImg2ImgPipeline",
    pytest.param("StableDiffusionInpaintPipeline (4 channels)", marks=pytest.mark.slow),
)
"""One whose encoder draws from the generator of each image, and one with two encoders, which draw from the first."""

PROMPTS = {"prompt": ["a red circle", "a blue square"], "negative_prompt": ["blue", "blue"]}


@pytest.fixture(scope="module", params=NAMES)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Entry, Sampler]:
    """Compile a pipeline of the zoo, for two images at a time."""
    entry = ZOO[request.param]()
    options = entry.request
    sampling = Sampling(
        steps=options["num_inference_steps"],
        guidance=options["guidance_scale"],
        size=(16, 16),
        batch=2,
        strength=options.get("strength"),
    )
    calls = ComponentCalls()
    graphs = calls.graphs(trace_pipeline(entry.pipeline, sampling, calls))
    tokenizers = {"tokenizer": entry.pipeline.tokenizer}
    return entry, Sampler(write_bundle(graphs, tmp_path_factory.mktemp("given") / "x.diffc", tokenizers=tokenizers))


def arrays(entry: Entry, count: int) -> dict[str, torch.Tensor]:
    """Return the entry's images, or as many different ones."""
    tensors = {name: value for name, value in entry.request.items() if isinstance(value, torch.Tensor)}
    return {name: torch.cat([tensor, tensor.flip(-1)][:count]) for name, tensor in tensors.items()}


CASES: dict[str, tuple[int, int, Callable[[Any], Any], dict[str, Any]]] = {
    "three images of one": (1, 3, lambda generator: generator(5), {}),
    "a seed for each image of one": (1, 2, lambda generator: [generator(5), generator(6)], {}),
    "two prompts for one": (1, 1, lambda generator: generator(5), PROMPTS),
    "two prompts for two": (2, 1, lambda generator: generator(5), PROMPTS),
    "a seed for each of two": (2, 1, lambda generator: [generator(5), generator(6)], PROMPTS),
}


@pytest.mark.parametrize("case", CASES)
def test_noise_has_the_rows_that_it_has_in_diffusers(case: str, compiled: tuple[Entry, Sampler]) -> None:
    entry, sampler = compiled
    count, num_images, seeds, texts = CASES[case]
    images = arrays(entry, count)
    of_diffusers = {
        "num_images_per_prompt": num_images,
        "generator": seeds(lambda seed: torch.Generator().manual_seed(seed)),
    }
    expected = entry.draw(**images, **texts, **of_diffusers, output_type="np").numpy()
    request = {"prompt": entry.request["prompt"], "negative_prompt": entry.request["negative_prompt"]} | texts
    request |= {name: tensor.movedim(1, -1).numpy() for name, tensor in images.items()}
    sampled = sampler(**request, seed=seeds(int), num_images=num_images, output="np")
    assert np.abs(sampled - expected).max() <= PICTURE
    assert len(expected) == 1 or np.abs(expected[0] - expected[1]).max() > 0.1


def test_several_images_of_several_given_ones_are_refused(compiled: tuple[Entry, Sampler]) -> None:
    entry, sampler = compiled
    images = {name: tensor.movedim(1, -1).numpy() for name, tensor in arrays(entry, 2).items()}
    with pytest.raises(RequestError, match="2 images for each of 2 rows of"):
        sampler("a red circle", **images, num_images=2)


PREPARED = (
    "StableDiffusionImageVariationPipeline",
    *(pytest.param(f"FluxControl{task}Pipeline", marks=pytest.mark.slow) for task in ("", "Img2Img", "Inpaint")),
    pytest.param("StableUnCLIPImg2ImgPipeline", marks=pytest.mark.slow),
)
"""Pipelines that scale, crop and normalize images, and do none of it to tensors."""


@pytest.mark.filterwarnings("ignore:.*the prompt is longer than")
@pytest.mark.parametrize("name", PREPARED)
def test_a_pipeline_prepares_its_images_itself(name: str, tmp_path: Path) -> None:
    outcome = sweep(name, tmp_path)
    assert outcome.status == "right", outcome
