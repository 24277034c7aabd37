"""Quantize tiny pipelines on the command line: what is built, what it says of itself, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffc.runtime import load
from tests.command_line import digests, refused, succeeded
from tests.format.manifest_schema import schema_errors
from tests.tolerances import QUANTIZED_PSNR
from tests.zoo import ZOO
from tests.zoo.sweep import build_options

PIPELINES = {"unet": "DDPMPipeline", "transformer": "DiTPipeline"}

QUICK = "calibrate_ranges?:by=minmax+round_to_nearest:by=minmax"


class Source:
    """Hold a saved pipeline, and how it is built in two steps."""

    def __init__(self, name: str, folder: Path) -> None:
        entry = ZOO[name]()
        self.path, self.prompts = folder / "model", folder / "prompts.txt"
        entry.pipeline.save_pretrained(self.path)
        self.prompts.write_text("a red circle\n")
        entry.request["num_inference_steps"] = 2
        self.options = build_options(entry) if "guidance_scale" in entry.request else ["--steps", "2"]

    def build(self, bundle: Path, target: str, quant: str = QUICK) -> dict[str, Any]:
        """Build it, calibrated with one prompt."""
        return succeeded(*self.command(bundle, target, quant))

    def command(self, bundle: Path, target: str, quant: str = QUICK) -> tuple[str | Path, ...]:
        """Give the command that builds it."""
        own = ("--target", target, "--quant", quant, "--calibration", self.prompts)
        return ("build", self.path, "-o", bundle, *self.options, *own)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Save a pipeline with a UNet."""
    return Source(PIPELINES["unet"], tmp_path_factory.mktemp("unet"))


@pytest.fixture(scope="module")
def bundle(unet: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it in 8 bits; tests must leave it as it is."""
    path = tmp_path_factory.mktemp("w8a8") / "x.diffc"
    unet.build(path, "ort-w8a8")
    return path


def in_float(bundle: Path, source: Source, folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Draw with a bundle, and with one in float, from the same seed."""
    succeeded("build", source.path, "-o", folder / "float.diffc", *source.options)
    picture, wanted = (load(path)(seed=1, output="np") for path in (bundle, folder / "float.diffc"))
    return np.asarray(picture), np.asarray(wanted)


def test_its_manifest_fits_the_schema(bundle: Path) -> None:
    assert schema_errors(bundle) == []


def test_eight_bits_draw_nearly_what_floats_draw(unet: Source, bundle: Path, tmp_path: Path) -> None:
    picture, wanted = in_float(bundle, unet, tmp_path)
    error = float(np.mean((picture - wanted) ** 2))
    assert 10 * np.log10(1 / error) > QUANTIZED_PSNR
    weights, whole = (
        sum(file.stat().st_size for file in (path / "weights").iterdir()) for path in (bundle, tmp_path / "float.diffc")
    )
    assert weights < 0.35 * whole


def test_a_quantized_bundle_runs_and_records_how_it_was_built(unet: Source, bundle: Path, tmp_path: Path) -> None:
    succeeded("run", bundle, "", "--seed", "1", "-o", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 100
    found = succeeded("inspect", bundle)
    report = json.loads((bundle / "quantization.json").read_text())
    provenance = found["provenance"]
    assert found["target"] == "ort-w8a8" and "quantization.json" in found["files"]
    assert provenance["calibration"] == report["calibration"]["digest"] and len(provenance["calibration"]) == 64
    quantization = provenance["recipe"]["quantization"]
    assert [name for name, _ in quantization["methods"]] == ["calibrate_ranges", "round_to_nearest"]
    assert quantization["conv"] == ["int7:channel:scale=float16", "uint8:tensor"]
    layers = {each["name"]: each for each in report["layers"]}
    assert layers["unet.down_blocks.0.resnets.0.conv1"]["weight"] == "int7:channel:scale=float16"
    graphs = json.loads((bundle / "manifest.json").read_text())["graphs"]
    assert all(graph["reduced_range"] for graph in graphs.values()), "bytes that every CPU of x86 multiplies exactly"
    assert report["psnr"] == report["drift"][0]["psnr"] > QUANTIZED_PSNR


def test_two_builds_are_identical(unet: Source, bundle: Path, tmp_path: Path) -> None:
    unet.build(tmp_path / "again.diffc", "ort-w8a8")
    assert digests(tmp_path / "again.diffc") == digests(bundle)


def test_a_picture_below_the_floor_fails_with_the_worst_layers_and_leaves_nothing(
    unet: Source, bundle: Path, tmp_path: Path
) -> None:
    error = refused(*unet.command(tmp_path / "x.diffc", "ort-w8a8"), "--min-psnr", "199")
    worst = json.loads((bundle / "quantization.json").read_text())["layers"][:5]
    assert "below --min-psnr 199" in error
    assert ", ".join(f"{each['name']} ({each['sqnr']:.1f} dB)" for each in worst) in error
    assert list(tmp_path.iterdir()) == []


def test_a_transformer_in_four_bits(tmp_path: Path) -> None:
    source = Source(PIPELINES["transformer"], tmp_path)
    made = tmp_path / "x.diffc"
    found = source.build(made, "ort-w4a8", f"keep_first_last+{QUICK}")
    assert found["bundle"] == str(made)
    succeeded("run", made, "", "--seed", "1", "-o", tmp_path / "x.png")
    layers = json.loads((made / "quantization.json").read_text())["layers"]
    formats = {each["weight"].partition(":")[0] for each in layers if each["name"].startswith("transformer.")}
    assert {"int4", "int8"} == formats, "its ends are kept at eight bits"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--calibration", "empty.txt"), "holds no prompts"),
        (("--calibration", "none.txt"), "cannot be read"),
        (("--quant", "gpqt"), "did you mean gptq?"),
        (("--quant", "smooth-quant"), "did you mean smoothquant?"),
        (("--recipe", "bad.toml"), "did you mean weight?"),
        (("--recipe", "none.toml"), "cannot be read"),
        (("--target", "ort-fp32", "--quant", "gptq"), "is not quantized"),
        (("--target", "ort-w8a9"), "no precision"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    unet: Source, options: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.toml").write_text('[[layer]]\nname = "a"\nwieght = "int8:channel"\n')
    monkeypatch.chdir(tmp_path)
    target = () if "--target" in options else ("--target", "ort-w8a8")
    error = refused("build", unet.path, *target, *options, "--steps", "2", "-o", tmp_path / "x.diffc")
    assert said in error and "load\n" not in error
    assert not (tmp_path / "x.diffc").exists()


def test_a_layer_that_does_not_exist_is_refused_and_nothing_is_left(unet: Source, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[[layer]]\nname = "unet.down_blocks.0.resnets.0.conv11"\nweight = "float"\n')
    command = unet.command(tmp_path / "x.diffc", "ort-w8a8")
    error = refused(*command, "--recipe", tmp_path / "recipe.toml")
    assert (
        "no layer is named 'unet.down_blocks.0.resnets.0.conv11'" in error
        and "did you mean unet.down_blocks.0.resnets.0.conv1?" in error
    )
    assert not (tmp_path / "x.diffc").exists()
