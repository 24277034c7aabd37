"""Build bundles from the command line: the same bytes again, nothing left of what fails, and faults named."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffc.compiler.checkpoint.load import load
from tests.command_line import DIFFC, digests, refused, succeeded
from tests.conftest import PROMPT, TINY, UNET
from tests.tolerances import VERIFIED_PSNR


def test_two_builds_are_identical(tiny_model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """In a process with another order of sets and an empty cache, the same bytes come out."""
    command = (*DIFFC, "build", tiny_model, *TINY, "-o", tmp_path / "x.diffc")
    own = os.environ | {"PYTHONHASHSEED": "1", "DIFFC_CACHE": str(tmp_path / "cache")}
    subprocess.run(command, check=True, capture_output=True, env=own)
    assert digests(tmp_path / "x.diffc") == digests(tiny_bundle)
    reports = [(bundle / "report.html").read_text() for bundle in (tmp_path / "x.diffc", tiny_bundle)]
    assert all("<td>capture</td>" in report for report in reports)


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
        ({}, ("--sampler", "DPMSolverSDEScheduler"), "reads the value of a symbolic"),
        ({}, ("--size", "17x17"), "divisible by 8"),
        ({}, ("--set", "guidance_rescale=high"), "not supported between"),
        ({}, ("--set", "true_cfg_scale=2"), "takes no true_cfg_scale"),
        ({}, ("--guidance-interval", "nan,1"), "guidance_interval is nan"),
        ({}, ("--guidance", "nan"), "nan"),
    ],
)
def test_what_contradicts_itself_or_asks_too_much(
    changes: dict[str, Any], options: tuple[str, ...], what: str, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    edited(tmp_path / "model", SCHEDULE, **changes)
    common = ("--size", "16x16", "--steps", "2", "-o", tmp_path / "x.diffc")
    assert what in refused("build", tmp_path / "model", *common, *options)
    assert not (tmp_path / "x.diffc").exists()


def test_components_that_do_not_fit_one_another(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = load(tiny_model)
    config = pipeline.text_encoder.config.to_dict() | {"hidden_size": 48}
    pipeline.text_encoder = type(pipeline.text_encoder)(type(pipeline.text_encoder.config)(**config))
    pipeline.save_pretrained(tmp_path / "model")
    error = refused("build", tmp_path / "model", "--size", "16x16", "--steps", "2", "-o", tmp_path / "x.diffc")
    assert "unet does not fit its arguments in the pipeline" in error


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


def test_half_precision_storage_computes_in_float32(tmp_path: Path, bundle: Path) -> None:
    found = succeeded("build", UNET, "--target", "ort-fp16", "--steps", "2", "-o", tmp_path / "half.diffc")
    weights = sum(path.stat().st_size for path in (tmp_path / "half.diffc" / "weights").iterdir())
    full = sum(path.stat().st_size for path in (bundle / "weights").iterdir())
    assert weights < 0.52 * full
    assert found["bytes"] > weights
    verified = succeeded("verify", tmp_path / "half.diffc", "--against", UNET)
    assert verified["psnr"] >= VERIFIED_PSNR, "the checkpoint is stored in float16: nothing is lost"


@pytest.mark.parametrize(
    ("model", "size", "task", "given"),
    [
        pytest.param(UNET, 64, "image-to-image", ("--image",), marks=pytest.mark.slow, id="image"),
        pytest.param(UNET, 64, "inpaint", ("--image", "--mask"), marks=pytest.mark.slow, id="inpaint"),
        pytest.param(None, 16, "inpaint", ("--image", "--mask"), id="inpaint-tiny"),
    ],
)
def test_pictures_are_inputs_too(
    tmp_path: Path, tiny_model: Path, model: Path | None, size: int, task: str, given: tuple[str, ...]
) -> None:
    source = model or tiny_model
    options = ("--task", task, "--size", f"{size}x{size}", "--steps", "4", "--strength", "0.75")
    succeeded("build", source, *options, "-o", tmp_path / "x.diffc")
    assert succeeded("verify", tmp_path / "x.diffc", "--against", source)["psnr"] >= VERIFIED_PSNR
    assert "needs the image" in refused("run", tmp_path / "x.diffc", PROMPT, "-o", tmp_path / "none.png")
    Image.new("RGBA", (100, 80), (200, 30, 30, 255)).save(tmp_path / "in.png")
    pictures = [part for option in given for part in (option, tmp_path / "in.png")]
    succeeded("run", tmp_path / "x.diffc", PROMPT, *pictures, "--seed", "1", "-o", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (size, size)


@pytest.mark.parametrize("name", ["num_images_per_prompt", "latents", "generator"])
def test_what_the_run_decides_is_not_set_at_build(tmp_path: Path, name: str) -> None:
    assert f"takes no {name} here" in refused("build", UNET, "--set", f"{name}=2", "-o", tmp_path / "x.diffc")


def test_programs_of_two_step_counts_share_weights(bundle: Path) -> None:
    found = succeeded("inspect", bundle)
    unet = sum(p.numel() for p in load(UNET).unet.parameters())
    assert found["files"]["weights/unet.bin"]["bytes"] < 4 * unet * 1.02


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_build_leaves_nothing_and_is_resumed(
    tiny_model: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
) -> None:
    monkeypatch.setenv("DIFFC_CACHE", str(tmp_path_factory.mktemp("cache")))
    command = (*DIFFC, "build", tiny_model, *TINY, "-o", tmp_path / "x.diffc")

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background ignores it

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stderr is not None
        while "lower unet" not in process.stderr.readline():
            assert process.poll() is None, "the build ended before it could be interrupted"
        time.sleep(0.1)
        process.send_signal(how)
        assert process.wait(60) == 1
        assert "interrupted" in process.stderr.read()
    assert list(tmp_path.iterdir()) == []
    kept = succeeded("build-cache")
    assert kept["entries"] == 1, "the text encoder, which was lowered before the UNet"
    succeeded("build", tiny_model, *TINY, "-o", tmp_path / "x.diffc")
    assert succeeded("build-cache", "--clear")["removed"] > kept["bytes"]
    assert succeeded("build-cache")["entries"] == 0


def test_a_full_disk_leaves_nothing(tiny_model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    largest = max(path.stat().st_size for path in (tiny_bundle / "weights").iterdir())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1))

    command = (*DIFFC, "build", tiny_model, *TINY, "-o", tmp_path / "x.diffc")
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert "the bundle cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
