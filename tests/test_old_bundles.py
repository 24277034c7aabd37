"""A bundle that an older diffc wrote, of schema 1, opens, samples what it did, and tells its facts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffc.compiler.bundle.provenance import arguments_of, facts_of
from diffc.runtime import Sampler, load
from diffc.runtime.program.facts import Facts

FOLDER = Path(__file__).parent / "old_bundles"
LEVEL = 1
"""Of 255: what a rounding that falls the other way changes."""


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    """Open the bundle."""
    return load(FOLDER / "schema_1.tar")


def test_an_old_bundle_samples_what_it_did(sampler: Sampler) -> None:
    assert sampler.manifest["schema"] == 1
    [image] = sampler("a red circle", seed=0)
    expected = np.asarray(Image.open(FOLDER / "schema_1.png"), int)
    assert expected.std() > 10 and np.abs(np.asarray(image, int) - expected).max() <= LEVEL


def test_its_facts_are_those_of_its_names(sampler: Sampler) -> None:
    assert sampler.facts == {
        "text_to_image_1": Facts("text-to-image", 1, (32, 32)),
        "text_to_image_1_unguided": Facts("text-to-image", 1, (32, 32), "unguided"),
    }
    arguments = arguments_of(facts_of(sampler.facts, "text_to_image_1"), sampler.manifest["provenance"]["recipe"])
    assert (arguments["num_inference_steps"], arguments["width"], arguments["height"]) == (1, 32, 32)
