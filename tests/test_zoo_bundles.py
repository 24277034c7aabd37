"""Save every pipeline of the zoo, and build, draw and verify it as a person does, on the command line."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest

from diffc.runtime import load
from tests.command_line import refused, succeeded
from tests.conftest import ROOT
from tests.test_zoo_programs import REFUSED
from tests.tolerances import PICTURE
from tests.zoo import ZOO
from tests.zoo.sweep import build_options, save_adapter

PAGE = ROOT / "docs" / "measured" / "pipelines.md"
PROMPT = "a red circle"
BUILT = [name for name in ZOO if name not in REFUSED]

FIRST = ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
"""A UNet, and a transformer; the others are built by ``make test-slow``."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    # The old weight norm of torch, which some vocoders have, sets attributes whenever it runs.
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
]


def built_and_compared(name: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Build the entry's bundle from its saved folder; give its row of the page, and what ``diffc verify`` found."""
    entry = ZOO[name]()
    adapter = save_adapter(entry, folder) if entry.ip_adapter else ()
    entry.pipeline.save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text(f"{PROMPT}\n")
    bundle = folder / "model.diffc"
    succeeded("build", folder / "model", "-o", bundle, *build_options(entry), *adapter)
    found = succeeded("verify", bundle, "--against", folder / "model", "--prompts", folder / "prompts.txt", *adapter)
    manifest = load(bundle).manifest
    stages = manifest["stages"]
    early = 1 - stages["latent"] / max(1, sum(stages.values()))
    return f"| `{name}` | yes | {len(manifest['graphs'])} graphs | {early:.0%} | ≤ {PICTURE:g} |", found


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in BUILT]
)
def test_a_saved_pipeline_is_built_drawn_and_verified(name: str, tmp_path: Path) -> None:
    row, found = built_and_compared(name, tmp_path)
    largest = 1.0 if found["ssim"] is not None else found["max_abs"] * 10 ** (found["psnr"] / 20)
    assert found["max_abs"] <= PICTURE * max(1.0, largest)
    assert row in PAGE.read_text(encoding="utf-8").splitlines(), "write it again: python -m tests.test_zoo_bundles"


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


def table() -> str:
    """Build everything and write what came of it, for the documentation; the test above checks every row."""
    rows = []
    for name in ZOO:
        print(name, file=sys.stderr, flush=True)
        if name in REFUSED:
            rows.append(f"| `{name}` | **no**: {REFUSED[name]} | | | |")
        else:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(built_and_compared(name, Path(folder))[0])
    head = f"""# Pipelines

What becomes of pipelines of diffusers {diffusers.__version__} that the tests assemble from tiny random weights, save to
a folder, and then build, draw and verify on the command line. *Traced*: the pipeline's call became a program.
*Captured*: how many graphs it calls. *Staged*: how much of the denoiser's parameters depends on no latents, and can so
leave the loop. *Parity*: the greatest difference from what diffusers draws, in float32.
`python -m tests.test_zoo_bundles` wrote this page, and `tests/test_zoo_bundles.py` checks every row.

| pipeline | traced | captured | staged | parity |
|---|---|---|---|---|
"""
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
