"""The command line becomes options, and provenance records them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffc.compiler.driver.options import read_options
from diffc.compiler.errors import BuildError, RecipeError, TargetError

DEFAULTS = {
    "task": "text-to-image",
    "sampler": None,
    "steps": [],
    "guidance": None,
    "sizes": [],
    "batch": 1,
    "strength": None,
    "options": {},
    "inputs": {},
    "guidance_interval": None,
    "quantization": None,
    "ip_adapter": None,
    "cache": None,
}


def recorded(target: str, **options: Any) -> dict[str, Any]:
    """Return what a manifest records, as JSON holds it."""
    found: dict[str, Any] = json.loads(json.dumps(read_options(target, **options).recorded))
    return found


def test_provenance_records_every_option_in_one_order() -> None:
    assert list(recorded("ort-fp32").items()) == list(DEFAULTS.items())


def test_provenance_records_what_was_requested(tmp_path: Path) -> None:
    options = recorded(
        "ort-w8a8",
        task="inpaint",
        sampler="euler",
        steps=(4, 4, 2),
        size=[(64, 32), (32, 64), (64, 32)],
        options={"num_frames": 16},
        inputs={"image_embeds": "1280"},
        ip_adapter=tmp_path / "face.safetensors",
        guidance_interval=(0.2, 0.8),
        cache="deepcache:interval=3",
        quant="round_to_nearest:by=minmax",
        seed=3,
    )
    assert options["steps"] == [4, 4, 2] and options["sizes"] == [[64, 32], [32, 64]]
    assert options["options"] == {"num_frames": 16} and options["guidance_interval"] == [0.2, 0.8]
    assert options["inputs"] == {"ip_adapter_image": "prepared", "image_embeds": "1280"}
    assert options["ip_adapter"] == "face.safetensors" and options["cache"] == ["deepcache", {"interval": 3}]
    assert options["quantization"]["methods"] == [["round_to_nearest", {"by": "minmax"}]]
    assert options["quantization"]["seed"] == 3 and (options["task"], options["sampler"]) == ("inpaint", "euler")


def test_prompts_are_of_use_where_something_is_calibrated(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    assert read_options("ort-fp32", cache="auto", calibration=prompts).prompts == ("a cat",)
    assert read_options("trt-fp16", calibration=prompts).prompts == ("a cat",)
    for target, cache in (("ort-fp32", None), ("ort-fp32", "deepcache"), ("trt-bf16", None)):
        with pytest.raises(RecipeError, match="is not quantized") as refused:
            read_options(target, cache=cache, calibration=prompts)
        assert refused.value.where == "--calibration"


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"target": "ort-w9"}, TargetError, "no precision"),
        ({"target": "ort-fp32", "cache": "deepcash"}, RecipeError, "no cache"),
        ({"target": "ort-fp32", "size": (0, 64)}, BuildError, "no size"),
        ({"target": "ort-w8a8", "calibration": "none.txt"}, BuildError, "cannot be read"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        read_options(**options)


def test_component_files_are_recorded_by_their_names(tmp_path: Path) -> None:
    files = {"unet": tmp_path / "unet.gguf"}
    assert read_options("ort-fp32", component_files=files).component_files == files
    assert read_options("ort-fp32", component_files=files).files == files
    assert recorded("ort-fp32", component_files=files) == {**DEFAULTS, "component_files": {"unet": "unet.gguf"}}
