"""Build pipelines with other guidance than one scale for all steps, and compare what they draw with diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffc.runtime import load
from tests.command_line import refused, succeeded
from tests.conftest import DIT, UNET
from tests.test_zoo_bundles import PROMPT
from tests.tolerances import PICTURE, VERIFIED_PSNR
from tests.zoo import ZOO
from tests.zoo.sweep import build_options

pytestmark = [pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")]


def saved(name: str, folder: Path, *, steps: int = 5) -> tuple[Path, list[str]]:
    """Save a pipeline of the zoo, and give the options that fix its request."""
    entry = ZOO[name]()
    entry.pipeline.save_pretrained(folder / "model")
    options = build_options(entry)
    options[options.index("--steps") + 1] = str(steps)
    return folder / "model", options


def verified(model: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Build, and compare one picture."""
    (folder / "prompts.txt").write_text(f"{PROMPT}\n")
    succeeded("build", model, "-o", folder / "x.diffc", *options)
    return succeeded("verify", folder / "x.diffc", "--against", model, "--prompts", folder / "prompts.txt")


def calls(bundle: Path, operator: str) -> int:
    """Count the calls of a graph in the first program."""
    text = next(iter(load(bundle).programs.values()))
    return text.count(f" = {operator}(")


# Scales


def test_true_guidance_is_a_number_of_the_request(tmp_path: Path) -> None:
    entry = ZOO["FluxPipeline (true guidance)"]()
    model, options = saved("FluxPipeline (true guidance)", tmp_path, steps=2)
    succeeded("build", model, "-o", tmp_path / "x.diffc", *options)
    sampler = load(tmp_path / "x.diffc")
    assert sampler.scalars == {"guidance_scale": 4.0, "true_cfg_scale": 3.0}
    for scale in (3.0, 1.7, 1.0):
        wanted = entry.draw(3, prompt=PROMPT, negative_prompt="blue", num_inference_steps=2, true_cfg_scale=scale)
        negative = {"negative_prompt": "blue"} if scale > 1 else {}  # without guidance it has no effect
        got = sampler(PROMPT, **negative, true_cfg_scale=scale, seed=3, output="np")
        assert np.abs(np.moveaxis(got, -1, 1) - wanted.numpy()).max() <= PICTURE
    common = ("run", tmp_path / "x.diffc", PROMPT, "--seed", "3", "-o", tmp_path / "out.png")
    succeeded(*common, "--set", "true_cfg_scale=1.7")
    assert "seed is no scalar of the request" in refused(*common, "--set", "seed=1")
    assert "'high'" in refused(*common, "--set", "true_cfg_scale=high")
    assert "is 'high'" in refused("build", model, "-o", tmp_path / "y.diffc", "--set", "true_cfg_scale=high")


def test_an_embedded_scale_that_is_no_polynomial_is_fixed(tmp_path: Path) -> None:
    model, options = saved("LatentConsistencyModelPipeline", tmp_path, steps=2)
    assert verified(model, tmp_path, *options)["max_abs"] <= PICTURE
    (text,) = load(tmp_path / "x.diffc").programs.values()
    assert "guard guidance_scale == 4.0" in text
    error = refused("run", tmp_path / "x.diffc", PROMPT, "--guidance", "3", "-o", tmp_path / "out.png")
    assert "takes guidance_scale == 4.0" in error


@pytest.mark.parametrize(
    ("name", "interval"),
    [
        ("StableDiffusionPipeline", ("--guidance-interval", "0.3,0.7")),
        pytest.param("StableDiffusionXLPipeline", (), marks=pytest.mark.slow),
    ],
)
def test_guidance_is_rescaled(name: str, interval: tuple[str, ...], tmp_path: Path) -> None:
    model, options = saved(name, tmp_path, steps=3)
    found = verified(model, tmp_path, *options, "--set", "guidance_rescale=0.7", *interval)
    assert found["max_abs"] <= PICTURE
    plain = ZOO[name]().draw(0, prompt=PROMPT, negative_prompt="", num_inference_steps=3)
    drawn = load(tmp_path / "x.diffc")(PROMPT, seed=0, output="np")
    assert np.abs(np.moveaxis(drawn, -1, 1) - plain.numpy()).max() > PICTURE, "it does something"


# The negative prompt


def test_no_negative_prompt_is_what_the_pipeline_takes_it_for(tmp_path: Path) -> None:
    entry = ZOO["StableDiffusionXLPipeline"]()
    assert entry.pipeline.config.force_zeros_for_empty_prompt
    model, options = saved("StableDiffusionXLPipeline", tmp_path, steps=2)
    assert verified(model, tmp_path, *options)["max_abs"] <= PICTURE
    sampler = load(tmp_path / "x.diffc")
    assert [*sampler.programs] == [f"text_to_image_2{kind}" for kind in ("", "_no_negative", "_unguided")]
    drawn = {}
    for negative in (None, "", "blue"):
        wanted = entry.draw(3, prompt=PROMPT, negative_prompt=negative, num_inference_steps=2)
        drawn[negative] = sampler(PROMPT, negative_prompt=negative, seed=3, output="np")
        assert np.abs(np.moveaxis(drawn[negative], -1, 1) - wanted.numpy()).max() <= PICTURE
    assert np.abs(drawn[None] - drawn[""]).max() > PICTURE
    by_name = ("--against", model, "--program", "text_to_image_2")
    assert succeeded("verify", tmp_path / "x.diffc", *by_name)["max_abs"] <= PICTURE


# Intervals


TRAINED = ((UNET, "dpmpp-2m"), (UNET, "heun"), (DIT, "flow-heun"))
LONG = [pytest.param(model, sampler, marks=pytest.mark.slow) for model, sampler in TRAINED]


@pytest.mark.parametrize(("trained", "sampler"), [(None, "dpmpp-2m"), *LONG])
def test_guidance_inside_an_interval_draws_what_the_pipeline_draws_with_equal_branches(
    trained: Path | None, sampler: str, tiny_model: Path, tmp_path: Path
) -> None:
    model, size = (trained, ()) if trained else (tiny_model, ("--size", "16x16"))
    options = ("--steps", "6", "--sampler", sampler, *size)
    assert verified(model, tmp_path, *options, "--guidance-interval", "0.3,0.7")["psnr"] >= VERIFIED_PSNR
    limited = load(tmp_path / "x.diffc")(PROMPT, seed=0, output="np")
    succeeded("build", model, "-o", tmp_path / "whole.diffc", *options)
    assert np.abs(load(tmp_path / "whole.diffc")(PROMPT, seed=0, output="np") - limited).max() > PICTURE
    denoiser = "transformer" if trained == DIT else "unet"
    whole = calls(tmp_path / "whole.diffc", denoiser)
    inside = int(0.7 * whole) - int(0.3 * whole)
    assert (calls(tmp_path / "x.diffc", denoiser), calls(tmp_path / "x.diffc", f"{denoiser}_2")) == (
        inside,
        whole - inside,
    )
    assert load(tmp_path / "x.diffc").manifest["provenance"]["recipe"]["guidance_interval"] == [0.3, 0.7]


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionPipeline",
        pytest.param("StableDiffusionInpaintPipeline (9 channels)", marks=pytest.mark.slow),
        pytest.param("StableDiffusionControlNetPipeline", marks=pytest.mark.slow),
        pytest.param("StableDiffusion3Pipeline", marks=pytest.mark.slow),
    ],
)
def test_intervals_of_pipelines_of_the_zoo(name: str, tmp_path: Path) -> None:
    model, options = saved(name, tmp_path)
    assert verified(model, tmp_path, *options, "--guidance-interval", "0.2,0.6")["max_abs"] <= PICTURE


@pytest.mark.parametrize(
    ("name", "interval", "what"),
    [
        ("StableDiffusionInstructPix2PixPipeline", "0.2,0.6", "needs all"),
        ("LatentConsistencyModelPipeline", "0.2,0.6", "needs all"),
        ("PixArtAlphaPipeline", "0.2,0.6", "marks no steps"),
        ("StableDiffusionPipeline", "0.2,1.6", "are inside 0.2,1.6"),
    ],
)
def test_intervals_that_are_refused(name: str, interval: str, what: str, tmp_path: Path) -> None:
    model, options = saved(name, tmp_path)
    assert what in refused("build", model, "-o", tmp_path / "x.diffc", *options, "--guidance-interval", interval)
