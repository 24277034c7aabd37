"""Bundles of several sizes on the command line: what they share and draw, what is compared, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffc.compiler.checkpoint.load import load as load_pipeline
from diffc.compiler.commands.bench import Measurement, bench
from diffc.runtime import load
from diffc.runtime.engines.tensorrt_library import INSTALL, RTX, installed
from diffc.runtime.program.facts import UNGUIDED, Facts
from tests.command_line import digests, refused, succeeded
from tests.test_quantized_bundles import PIPELINES, QUICK, Source
from tests.tolerances import PICTURE, QUANTIZED_PSNR, VERIFIED_PSNR

PROMPT = "a red circle"
SIZES = ((16, 16), (24, 16))
ASKED = ("--size", "16x16,24x16")
NAMES = ["text_to_image_2_16x16", "text_to_image_2_16x16_unguided"]
NAMES += ["text_to_image_2_24x16", "text_to_image_2_24x16_unguided"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Save a pipeline with guidance."""
    return Source("StableDiffusionPipeline", tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def bundle(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it in two sizes; tests must leave it as it is."""
    path = tmp_path_factory.mktemp("sizes") / "x.diffc"
    succeeded("build", source.path, *source.options, *ASKED, "-o", path)
    return path


def psnr(picture: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10(1 / np.mean((picture - wanted) ** 2)))


def test_each_size_has_programs_and_all_share_the_weights(bundle: Path, source: Source, tmp_path: Path) -> None:
    found = succeeded("inspect", bundle)
    assert list(found["programs"]) == NAMES
    facts = [Facts("text-to-image", 2, size, variant) for size in SIZES for variant in ("", UNGUIDED)]
    assert load(bundle).facts == dict(zip(NAMES, facts, strict=True))
    assert found["provenance"]["recipe"]["sizes"] == [[16, 16], [24, 16]]
    succeeded("build", source.path, *source.options, "-o", tmp_path / "one.diffc")
    assert list(load(tmp_path / "one.diffc").programs) == ["text_to_image_2", "text_to_image_2_unguided"]
    weights = [
        {name: d for name, d in digests(p).items() if "weights" in name} for p in (bundle, tmp_path / "one.diffc")
    ]
    assert weights[0] == weights[1] != {}


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_size_is_drawn_as_diffusers_draws_it(bundle: Path, source: Source, tmp_path: Path, guidance: float) -> None:
    pipeline = load_pipeline(source.path)
    pipeline.set_progress_bar_config(disable=True)
    for options, (width, height) in (([], SIZES[0]), (["--size", "24x16"], SIZES[1])):
        common = ("--seed", "3", "--guidance", str(guidance), "-o", tmp_path / "x.npy")
        succeeded("run", bundle, PROMPT, *common, *options)
        wanted = pipeline(
            PROMPT,
            guidance_scale=guidance,
            num_inference_steps=2,
            width=width,
            height=height,
            generator=torch.Generator("cpu").manual_seed(3),
            output_type="np",
        ).images
        assert wanted.shape == (1, height, width, 3)
        assert np.abs(np.load(tmp_path / "x.npy") - wanted).max() <= PICTURE


def test_a_size_that_is_not_there_is_refused_with_those_that_are(bundle: Path, tmp_path: Path) -> None:
    said = refused("run", bundle, PROMPT, "--size", "16x24", "-o", tmp_path / "x.png")
    assert "this bundle has no size 16x24" in said and "it has 16x16, 24x16; diffc build --size" in said
    said = refused("run", bundle, PROMPT, "--size", "24x16", "--program", NAMES[0], "-o", tmp_path / "x.png")
    assert f"{NAMES[0]} has no size 24x16" in said and "it has 16x16" in said


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
def test_verify_compares_with_the_pipeline_at_the_program_s_size(bundle: Path, source: Source, name: str) -> None:
    guidance = ("--guidance", "5")
    found = succeeded("verify", bundle, "--against", source.path, "--program", name, *guidance)
    assert found["psnr"] > VERIFIED_PSNR
    assert min(each["sqnr"] for each in found["components"].values()) > VERIFIED_PSNR


def test_baselines_sample_at_the_program_s_size(bundle: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = dict[str, Mapping[str, Any]]()

    def measured(name: str, request: Mapping[str, Any]) -> Measurement:
        requests[name] = request
        return Measurement(1.0, (1.0,), (1.0,), 1)

    monkeypatch.setattr("diffc.compiler.commands.bench.measure", measured)
    for name, (width, height) in zip(NAMES[::2], SIZES, strict=True):
        bench(bundle, against=("torch",), source=source.path, program=name, repeat=1)
        arguments = requests["torch"]["arguments"]
        assert (arguments["width"], arguments["height"], arguments["num_inference_steps"]) == (width, height, 2)


@pytest.mark.slow
def test_few_bits_and_a_cache_serve_every_size(bundle: Path, source: Source, tmp_path: Path) -> None:
    own = ("--cache", "deepcache:interval=1", *ASKED)
    succeeded(*source.command(tmp_path / "x.diffc", "ort-w8a8"), *own)
    few, whole = load(tmp_path / "x.diffc"), load(bundle)
    for guidance in (1.0, 1.1):  # without, and with two branches whose errors are not weighed much
        for size in SIZES:
            given: dict[str, Any] = {"seed": 1, "size": size, "guidance_scale": guidance, "output": "np"}
            assert psnr(few(PROMPT, **given), whole(PROMPT, **given)) > QUANTIZED_PSNR


@pytest.mark.slow
def test_a_cache_cuts_the_graphs_of_every_size(source: Source, tmp_path: Path) -> None:
    cache = ("--cache", "deepcache:interval=2", "--steps", "2", *ASKED)
    succeeded("build", source.path, *source.options, *cache, "-o", tmp_path / "x.diffc")
    for size in SIZES:
        assert load(tmp_path / "x.diffc")(PROMPT, seed=1, size=size, output="np").shape == (1, size[1], size[0], 3)
    for text in load(tmp_path / "x.diffc").programs.values():
        assert "_piece_1(" in text


@pytest.mark.slow
@pytest.mark.skipif(RTX not in installed(), reason=f"TensorRT for RTX is not installed: {INSTALL[RTX]}")
@pytest.mark.filterwarnings("ignore::diffc.runtime.errors.DiffcWarning")
def test_one_engine_serves_both_sizes_with_and_without_guidance(bundle: Path, source: Source, tmp_path: Path) -> None:
    succeeded(*source.command(tmp_path / "x.diffc", "trt-w8a8@sm89", QUICK), *ASKED)
    manifest = json.loads((tmp_path / "x.diffc" / "manifest.json").read_text())
    denoisers = [name for name, each in manifest["graphs"].items() if each["component"] == "unet"]
    main = [name for name in denoisers if "request" not in name]
    assert len(main) == 4
    assert {manifest["graphs"][name]["file"] for name in main} == {"unet.onnx"}
    assert {manifest["engines"][name]["file"] for name in main} == {"engines/unet.engine"}
    assert {manifest["graphs"][name]["file"] for name in denoisers} <= {"unet.onnx", "unet_request.onnx"}
    assert manifest["graphs"]["vae_decode"]["file"] == manifest["graphs"]["vae_decode_2"]["file"] == "vae_decode.onnx"
    drawn, wanted = load(tmp_path / "x.diffc"), load(bundle)
    for guidance in (1.0, 1.1):  # without, and with two branches whose errors are not weighed much
        for size in SIZES:
            given: dict[str, Any] = {"seed": 1, "size": size, "guidance_scale": guidance, "output": "np"}
            assert psnr(drawn(PROMPT, **given), wanted(PROMPT, **given)) > QUANTIZED_PSNR


def test_a_size_that_the_pipeline_refuses_leaves_nothing(source: Source, tmp_path: Path) -> None:
    command = ("build", source.path, *source.options, "-o", tmp_path / "x.diffc")
    assert "divisible by 8 but are 16 and 17" in refused(*command, "--size", "16x16,17x16")
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_the_pipeline_draws_alike_are_refused(tmp_path: Path) -> None:
    fixed = Source(PIPELINES["unet"], tmp_path)
    said = refused("build", fixed.path, *fixed.options, *ASKED, "-o", tmp_path / "x.diffc")
    assert "the pipeline samples 1 of these 2 sizes" in said and "--size 16x16,24x16" in said
