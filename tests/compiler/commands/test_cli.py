"""Run, inspect and refuse on the command line, as a person does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffc.compiler.checkpoint.load import load
from diffc.compiler.ir.parse import parse
from tests.command_line import diffc, refused, succeeded
from tests.conftest import PROMPT, UNET
from tests.tolerances import PICTURE_8BIT


def test_run_draws_what_diffusers_draws(bundle: Path, tmp_path: Path) -> None:
    found = succeeded("run", bundle, PROMPT, "--seed", "7", "--guidance", "5", "-o", tmp_path / "out.png")
    assert found["image"] == str(tmp_path / "out.png")
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 1 << 20
    pipeline = load(UNET)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(7)
    wanted = pipeline(PROMPT, num_inference_steps=4, guidance_scale=5.0, generator=generator).images[0]
    got = np.asarray(Image.open(tmp_path / "out.png"), dtype=int)
    assert np.abs(got - np.asarray(wanted, dtype=int)).max() <= PICTURE_8BIT


def test_latents_from_a_file_stand_for_the_noise_of_a_seed(bundle: Path, tmp_path: Path) -> None:
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator("cpu").manual_seed(3)).numpy()
    np.save(tmp_path / "latents.npy", noise)
    common = (bundle, PROMPT, "--program", "text_to_image_2")
    succeeded("run", *common, "--latents", tmp_path / "latents.npy", "-o", tmp_path / "a.png")
    succeeded("run", *common, "--seed", "3", "-o", tmp_path / "b.png")
    a, b = (np.asarray(Image.open(tmp_path / name), dtype=int) for name in ("a.png", "b.png"))
    assert np.abs(a - b).max() <= PICTURE_8BIT


def test_guidance_of_one_takes_the_unguided_program(bundle: Path, tmp_path: Path) -> None:
    common = ("run", bundle, PROMPT, "--guidance", "1", "--seed", "1")
    succeeded(*common, "-o", tmp_path / "a.png")
    succeeded(*common, "--program", "text_to_image_4_unguided", "-o", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "guidance_scale" in refused(*common, "--program", "text_to_image_4", "-o", tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_an_output_that_cannot_be_written_is_refused_before_a_bundle_is_opened(tmp_path: Path) -> None:
    for name, what in (("missing/x.png", "there is no folder"), (".", "it is a folder"), ("x.foo", "no extension")):
        assert what in refused("run", tmp_path / "none.diffc", PROMPT, "-o", tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_inspect_shows_programs_bytes_and_stages(bundle: Path) -> None:
    found = succeeded("inspect", bundle)
    names = ["text_to_image_4", "text_to_image_4_unguided", "text_to_image_2", "text_to_image_2_unguided"]
    assert list(found["programs"]) == names
    for text in found["programs"].values():
        assert str(parse(text)) == text
    described = ("manifest.json", "report.html")
    on_disk = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file() and path.name not in described)
    assert found["bytes"] == on_disk
    assert found["stages"].keys() == {"step", "request", "request_step", "latent"}
    assert sum(found["stages"].values()) == sum(p.numel() for p in load(UNET).unet.parameters())
    assert list(succeeded("inspect", bundle, "--program", names[2])["programs"]) == [names[2]]
    lines = diffc("inspect", bundle).stderr.rstrip().splitlines()
    assert lines[0].startswith(f"{bundle}: {found['bytes']:,} B for ort-fp32, programs {names[0]}, ")
    first = next(at for at, line in enumerate(lines) if line.startswith("program "))
    assert any(line.startswith("provenance: ") for line in lines[:first]) and lines[-1] == "}"


@pytest.mark.parametrize(
    "command", ["build", "finalize", "run", "inspect", "verify", "bench", "estimate", "doctor", "build-cache"]
)
def test_help_has_an_example(command: str) -> None:
    result = diffc(command, "--help")
    assert result.exit_code == 0
    assert f"diffc {command}" in result.output
    assert "--json" in result.output


def test_the_old_name_of_a_command_still_works_and_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFC_CACHE", str(tmp_path))
    assert succeeded("cache") == succeeded("build-cache")
    listed = [line.split()[0] for line in diffc("--help").output.splitlines() if line.startswith("  ")]
    assert "build-cache" in listed and "cache" not in listed


def test_a_picture_of_no_size() -> None:
    assert diffc("build", UNET, "--size", "0x64").exit_code == 2


@pytest.mark.parametrize(
    "options",
    [
        ("--steps", "0"),
        ("--steps", "ten"),
        ("--size", "64"),
        ("--size", "64x64,"),
        ("--size", "64x64,96"),
        ("--batch", "0"),
        ("--what",),
        ("--set", "clip_skip"),
        ("--set", "eta=1", "--set", "eta=1"),
        ("--component", "unet=a.gguf", "--component", "unet=b.gguf"),
    ],
)
def test_usage_errors_exit_with_2(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert diffc("build", UNET, *options, "-o", tmp_path / "x.diffc").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_errors_are_objects_too(tmp_path: Path) -> None:
    result = diffc("build", tmp_path / "none.safetensors", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["fix"]


def changed_byte(folder: Path) -> None:
    with (folder / "weights" / "unet.bin").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))


def missing_file(folder: Path) -> None:
    (folder / "weights" / "vae.bin").unlink()


def truncated(folder: Path) -> None:
    path = folder / "weights" / "unet.bin"
    path.write_bytes(path.read_bytes()[:-1])


def newer_schema(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 1000}))


def leaving_path(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../unet.onnx"] = manifest["files"].pop("unet.onnx")
    manifest["graphs"]["unet"]["file"] = "../unet.onnx"
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (changed_byte, "weights/unet.bin was changed"),
        (missing_file, "weights/vae.bin is missing"),
        (truncated, "weights/unet.bin is truncated"),
        (newer_schema, "schema"),
        (leaving_path, "leaves the bundle"),
    ],
)
def test_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    shutil.copytree(bundle, tmp_path / "bad.diffc")
    damage(tmp_path / "bad.diffc")
    assert said in refused("run", tmp_path / "bad.diffc", PROMPT, "-o", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", str(1 << 70)), "seed"),
        (("--program", "none"), "program"),
        (("--latents", "missing.npy"), "cannot be read"),
        (("--guidance", "nan"), "guidance_scale"),
        (("--guidance", "5", "--set", "guidance_scale=7"), "guidance_scale is set twice"),
        (("--image", "a.png", "--input", "image=b.png"), "image is set twice"),
        (("--input", "negative_prompt=a.png"), "negative_prompt is no image or array of the request"),
    ],
)
def test_a_request_that_cannot_be_served(bundle: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    assert said in refused("run", bundle, PROMPT, *options, "-o", tmp_path / "out.png")


def test_prompts_of_every_kind_are_drawn(bundle: Path, tmp_path: Path) -> None:
    for prompt in ("", "赤い丸", "круг ⬤ דמות"):
        succeeded("run", bundle, prompt, "--program", "text_to_image_2", "-o", tmp_path / "out.png")
    result = diffc("run", bundle, "circle " * 60, "--program", "text_to_image_2", "-o", tmp_path / "out.png")
    assert result.exit_code == 0
    assert "warning" in result.stderr
