"""Use the commands as a person does."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from diffc.compiler import capture, write_bundle
from diffc.compiler.backends.backend import find_backend
from diffc.compiler.checkpoint.load import load
from diffc.compiler.commands.cli import main
from diffc.compiler.errors import TargetError
from diffc.compiler.ir.parse import parse
from diffc.runtime import BundleError
from diffc.runtime.engines.cuda import find_gpu
from diffc.runtime.engines.tensorrt_library import installed
from tests.conftest import PROMPT, UNET
from tests.tolerances import PICTURE_8BIT, VERIFIED_PSNR
from tests.zoo import ZOO

DIFFC = (sys.executable, "-c", "from diffc.compiler.commands.cli import main; main()")


def diffc(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeeded(*arguments: str | Path) -> dict[str, Any]:
    result = diffc(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: str | Path) -> str:
    """Check the form of an error: three lines at most, no traceback, exit code 1; give its text."""
    result = diffc(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if not line.lstrip()[:1].isdigit() and line.strip()]
    assert 1 <= len(lines) <= 4
    return result.stderr


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


def test_programs_of_two_step_counts_share_weights(bundle: Path) -> None:
    found = succeeded("inspect", bundle)
    unet = sum(p.numel() for p in load(UNET).unet.parameters())
    assert found["files"]["weights/unet.bin"]["bytes"] < 4 * unet * 1.02


def test_verify_measures_fidelity_and_fails_below_the_floor(bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"\n  {PROMPT}\n\n")
    common = ("verify", bundle, "--against", UNET, "--prompts", prompts)
    found = succeeded(*common, "--min-psnr", str(VERIFIED_PSNR))
    assert found["psnr"] >= VERIFIED_PSNR
    assert [image["prompt"] for image in found["images"]] == [PROMPT], "blank lines are no prompts"
    assert {"text_encoder", "unet", "vae_decode"} <= found["components"].keys()
    assert diffc(*common, "--min-psnr", "190").exit_code == 1


def test_what_no_pipeline_made_cannot_be_verified(tmp_path: Path) -> None:
    write_bundle([capture(lambda: torch.randn(1, 3, 4, 4), {})], tmp_path / "own.diffc")
    said = refused("verify", tmp_path / "own.diffc", "--against", UNET)
    assert "main was not built from a pipeline" in said


@pytest.mark.parametrize("name", ["num_images_per_prompt", "latents", "generator"])
def test_what_the_run_decides_is_not_set_at_build(tmp_path: Path, name: str) -> None:
    assert f"takes no {name} here" in refused("build", UNET, "--set", f"{name}=2", "-o", tmp_path / "x.diffc")


def test_verify_notices_another_checkpoint(bundle: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(UNET, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    name = next(key for key in tensors if key.endswith("input_blocks.0.0.weight"))
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, tmp_path / "other.safetensors", metadata)
    found = succeeded("verify", bundle, "--against", tmp_path / "other.safetensors")
    assert found["psnr"] < VERIFIED_PSNR
    assert found["components"]["unet"]["sqnr"] < found["components"]["text_encoder"]["sqnr"]


def test_doctor_knows_targets_and_opens_a_bundle(bundle: Path) -> None:
    found = succeeded("doctor", bundle)
    assert "ort-fp32" in found["targets"]
    assert found["checks"]["bundle"]["ok"]
    assert found["checks"]["compiler"]["ok"]


def test_doctor_says_which_tensorrt_is_here_and_whether_engines_run() -> None:
    checks = succeeded("doctor")["checks"]
    try:
        gpu = find_gpu()
        assert checks["gpu"] == {"ok": True, "detail": f"{gpu.name}, {gpu.arch}, with a driver for CUDA {gpu.cuda}"}
    except BundleError as error:
        assert checks["gpu"] == {"ok": False, "detail": f"{error.what}: {error.fix}"}
    assert checks["tensorrt"]["ok"] == bool(installed())
    for kind, version in installed().items():
        assert f"{kind} {version} builds trt-… for " in checks["tensorrt"]["detail"]


def test_doctor_names_a_backend_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        if name == "onnx":
            raise TargetError("backend 'onnx' cannot be imported", fix="install it")
        return find_backend(name)

    monkeypatch.setattr("diffc.compiler.commands.doctor.find_backend", broken)
    found = succeeded("doctor")
    assert found["checks"]["backend onnx"] == {"ok": False, "detail": "backend 'onnx' cannot be imported: install it"}
    assert not any(target.startswith("onnx-") for target in found["targets"]) and "ort-fp32" in found["targets"]


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


def test_half_precision_storage_computes_in_float32(tmp_path: Path, bundle: Path) -> None:
    found = succeeded("build", UNET, "--target", "ort-fp16", "--steps", "2", "-o", tmp_path / "half.diffc")
    weights = sum(path.stat().st_size for path in (tmp_path / "half.diffc" / "weights").iterdir())
    full = sum(path.stat().st_size for path in (bundle / "weights").iterdir())
    assert weights < 0.52 * full
    assert found["bytes"] > weights
    verified = succeeded("verify", tmp_path / "half.diffc", "--against", UNET)
    assert verified["psnr"] >= VERIFIED_PSNR, "the checkpoint is stored in float16: nothing is lost"


@pytest.mark.parametrize(
    ("task", "given"),
    [
        pytest.param("image-to-image", ("--image",), marks=pytest.mark.slow, id="image"),
        pytest.param("inpaint", ("--image", "--mask"), id="inpaint"),
    ],
)
def test_pictures_are_inputs_too(tmp_path: Path, task: str, given: tuple[str, ...]) -> None:
    options = ("--task", task, "--steps", "4", "--strength", "0.75", "-o", tmp_path / "x.diffc")
    succeeded("build", UNET, *options)
    assert succeeded("verify", tmp_path / "x.diffc", "--against", UNET)["psnr"] >= VERIFIED_PSNR
    assert "needs the image" in refused("run", tmp_path / "x.diffc", PROMPT, "-o", tmp_path / "none.png")
    Image.new("RGBA", (100, 80), (200, 30, 30, 255)).save(tmp_path / "in.png")
    pictures = [part for option in given for part in (option, tmp_path / "in.png")]
    succeeded("run", tmp_path / "x.diffc", PROMPT, *pictures, "--seed", "1", "-o", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (64, 64)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_builds_are_identical(tmp_path: Path) -> None:
    ZOO["StableDiffusionPipeline"]().pipeline.save_pretrained(tmp_path / "model")
    for name, seed in (("a.diffc", "1"), ("b.diffc", "2")):
        command = (*DIFFC, "build", tmp_path / "model", "--steps", "2", "--size", "16x16", "-o", tmp_path / name)
        own = os.environ | {"PYTHONHASHSEED": seed, "DIFFC_CACHE": str(tmp_path / f"cache{seed}")}
        subprocess.run(command, check=True, capture_output=True, env=own)
    first, second = digests(tmp_path / "a.diffc"), digests(tmp_path / "b.diffc")
    assert first.pop("report.html") and second.pop("report.html")
    assert first == second, "all but the report, which shows how long the build took"


# Bad input


def edited(folder: Path, file: str, **changes: Any) -> None:
    """Change entries of a configuration."""
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | changes))


SCHEDULE = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("changes", "options", "what"),
    [
        ({"prediction_type": "velocity"}, (), "velocity"),
        ({"timestep_spacing": "odd"}, (), "odd is not supported"),
        ({"beta_schedule": "zigzag"}, (), "zigzag"),
        ({"num_train_timesteps": 0}, (), "cannot be put together"),
        ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, ("--sampler", "euler"), "refuses the checkpoint"),
        ({}, ("--steps", "1001"), "1001"),
        ({}, ("--sampler", "DPMSolverSDEScheduler"), "not normal"),
        ({}, ("--size", "17x17"), "divisible by 8"),
        ({}, ("--set", "guidance_rescale=high"), "not supported between"),
        ({}, ("--set", "true_cfg_scale=2"), "takes no true_cfg_scale"),
        ({}, ("--guidance-interval", "nan,1"), "0 of 2 steps are inside nan,1"),
        ({}, ("--guidance", "nan"), "nan"),
    ],
)
def test_what_contradicts_itself_or_asks_too_much(
    changes: dict[str, Any], options: tuple[str, ...], what: str, tmp_path: Path
) -> None:
    ZOO["StableDiffusionPipeline"]().pipeline.save_pretrained(tmp_path / "model")
    edited(tmp_path / "model", SCHEDULE, **changes)
    common = ("--size", "16x16", "--steps", "2", "-o", tmp_path / "x.diffc")
    assert what in refused("build", tmp_path / "model", *common, *options)
    assert not (tmp_path / "x.diffc").exists()


def test_components_that_do_not_fit_one_another(tmp_path: Path) -> None:
    pipeline = ZOO["StableDiffusionPipeline"]().pipeline
    config = pipeline.text_encoder.config.to_dict() | {"hidden_size": 48}
    pipeline.text_encoder = type(pipeline.text_encoder)(type(pipeline.text_encoder.config)(**config))
    pipeline.save_pretrained(tmp_path / "model")
    error = refused("build", tmp_path / "model", "--size", "16x16", "--steps", "2", "-o", tmp_path / "x.diffc")
    assert "unet does not fit what the pipeline gives it" in error


def test_a_picture_of_no_size() -> None:
    assert diffc("build", UNET, "--size", "0x64").exit_code == 2


def test_the_output_exists(tmp_path: Path) -> None:
    (tmp_path / "mine.diffc").mkdir()
    (tmp_path / "mine.diffc" / "keep.txt").write_text("mine")
    assert "exists" in refused("build", UNET, "-o", tmp_path / "mine.diffc")
    assert (tmp_path / "mine.diffc" / "keep.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "tpu-fp32"), "unknown backend"),
        (("--target", "ort-w9"), "no precision"),
        (("--sampler", "eular"), "euler"),
        (("--size", "65x64"), "divisible"),
        (("--sampler", "flow-euler"), "flow"),
        (("--set", "num_frames=16"), "set one of"),
        (("--set", "guidance_scale=3"), "takes no guidance_scale here"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    assert said in refused("build", UNET, *options, "--steps", "2", "-o", tmp_path / "x.diffc")
    assert list(tmp_path.iterdir()) == []


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
    ],
)
def test_usage_errors_exit_with_2(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert diffc("build", UNET, *options, "-o", tmp_path / "x.diffc").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_errors_are_objects_too(tmp_path: Path) -> None:
    result = diffc("build", tmp_path / "none.safetensors", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["fix"]


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_build_leaves_nothing_and_is_resumed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setenv("DIFFC_CACHE", str(tmp_path_factory.mktemp("cache")))
    command = (*DIFFC, "build", UNET, "--steps", "2", "-o", tmp_path / "x.diffc")

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background ignores it

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stderr is not None
        while "lower unet" not in process.stderr.readline():
            assert process.poll() is None, "the build ended before it could be interrupted"
        time.sleep(0.2)
        process.send_signal(how)
        assert process.wait(60) == 1
        assert "interrupted" in process.stderr.read()
    assert list(tmp_path.iterdir()) == []
    kept = succeeded("build-cache")
    assert kept["entries"] == 1, "the text encoder, which was lowered before the UNet"
    succeeded("build", UNET, "--steps", "2", "-o", tmp_path / "x.diffc")
    assert succeeded("build-cache", "--clear")["removed"] > kept["bytes"]
    assert succeeded("build-cache")["entries"] == 0


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))

    command = (*DIFFC, "build", UNET, "--steps", "2", "-o", tmp_path / "x.diffc")
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert "the bundle cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


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
    manifest["files"]["../unet.onnx"] = manifest["files"].pop("graphs/unet.onnx")
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
