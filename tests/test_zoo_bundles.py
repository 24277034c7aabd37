"""Save every pipeline of the zoo, and build, draw and verify it as a person does, on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from diffc.runtime import load
from tests.command_line import refused, succeeded
from tests.tolerances import PICTURE
from tests.zoo import ZOO
from tests.zoo.sweep import build_options, save_adapter

PROMPT = "a red circle"
FIRST = ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
"""A UNet, and a transformer; ``make test-zoo`` builds the others."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    # The old weight norm of torch, which some vocoders have, sets attributes whenever it runs.
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]


@pytest.mark.parametrize("name", FIRST)
def test_a_saved_pipeline_is_built_sampled_and_verified(name: str, tmp_path: Path) -> None:
    entry = ZOO[name]()
    entry.pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
    bundle = tmp_path / "model.diffc"
    succeeded("build", tmp_path / "model", "-o", bundle, *build_options(entry))
    verified = ("--against", tmp_path / "model", "--prompts", tmp_path / "prompts.txt")
    assert succeeded("verify", bundle, *verified)["max_abs"] <= PICTURE


FILES = [
    pytest.param("AnimateDiffPipeline", ".gif", marks=pytest.mark.slow),
    ("StableCascadePriorPipeline", ".npy"),
]


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_films_and_numbers_are_saved(name: str, suffix: str, tmp_path: Path) -> None:
    entry = ZOO[name]()
    entry.pipeline.save_pretrained(tmp_path / "model")
    succeeded("build", tmp_path / "model", "-o", tmp_path / "x.diffc", *build_options(entry))
    output = tmp_path / f"drawn{suffix}"
    succeeded("run", tmp_path / "x.diffc", PROMPT, "--seed", "0", "-o", output)
    if suffix == ".gif":
        with PIL.Image.open(output) as film:
            assert (film.n_frames, film.size) == (entry.request["num_frames"], (16, 16))
    else:
        drawn = load(tmp_path / "x.diffc")(PROMPT, seed=0, output="np")
        assert np.array_equal(np.load(output), drawn)


def test_embeddings_are_read_from_files(tmp_path: Path) -> None:
    entry = ZOO["KandinskyV22Pipeline"]()
    entry.pipeline.save_pretrained(tmp_path / "model")
    bundle = tmp_path / "x.diffc"
    assert "needs image_embeds and negative_image_embeds, of a shape" in refused("build", tmp_path / "model")
    succeeded("build", tmp_path / "model", "-o", bundle, *build_options(entry))
    given = []
    for name in ("image_embeds", "negative_image_embeds"):
        np.save(tmp_path / f"{name}.npy", entry.request[name].numpy())
        given += ["--input", f"{name}={tmp_path / name}.npy"]
    succeeded("run", bundle, "", "--seed", "3", "-o", tmp_path / "x.npy", *given)
    wanted = entry.draw(3, output_type="np").numpy()
    assert np.abs(np.load(tmp_path / "x.npy") - wanted).max() <= PICTURE
    assert "this program needs negative_image_embeds" in refused(
        "run", bundle, "", "-o", tmp_path / "y.npy", *given[:2]
    )
    np.save(tmp_path / "image_embeds.npy", np.array([{}]), allow_pickle=True)
    assert "cannot be read" in refused("run", bundle, "", "-o", tmp_path / "y.npy", *given)


def test_a_picture_is_prepared_as_the_feature_extractor_does(tmp_path: Path) -> None:
    entry = ZOO["StableDiffusionPipeline (IP-Adapter)"]()
    face = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    face.save(tmp_path / "face.png")
    wanted = entry.draw(5, ip_adapter_image=face, output_type="np").numpy()
    adapter = save_adapter(entry, tmp_path)
    entry.pipeline.save_pretrained(tmp_path / "model")
    bundle = tmp_path / "x.diffc"
    succeeded("build", tmp_path / "model", "-o", bundle, *build_options(entry), *adapter)
    given = ("--input", f"ip_adapter_image={tmp_path / 'face.png'}", "--seed", "5", "-o", tmp_path / "x.npy")
    succeeded("run", bundle, entry.request["prompt"], "--negative", entry.request["negative_prompt"], *given)
    assert np.abs(np.load(tmp_path / "x.npy") - wanted).max() <= PICTURE
    assert "built with the IP-Adapter adapter.safetensors" in refused("verify", bundle, "--against", tmp_path / "model")
