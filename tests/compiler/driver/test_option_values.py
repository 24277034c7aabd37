"""Options from Python have the values and the limits that they have on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffc.compiler import build
from diffc.compiler.driver.options import read_options
from diffc.compiler.errors import BuildError

SAME: list[tuple[str, str, Any, Any]] = [
    ("steps", "steps", 4, (4,)),
    ("steps", "steps", np.int64(4), (4,)),
    ("steps", "steps", [4, 2], (4, 2)),
    ("steps", "steps", range(1, 3), (1, 2)),
    ("steps", "steps", None, ()),
    ("size", "sizes", 512, ((512, 512),)),
    ("size", "sizes", (512, 256), ((512, 256),)),
    ("size", "sizes", [512, 256], ((512, 256),)),
    ("size", "sizes", [[512, 256], (64, 64)], ((512, 256), (64, 64))),
    ("guidance", "guidance", 5, 5.0),
    ("guidance", "guidance", np.float32(0.5), 0.5),
    ("guidance_interval", "guidance_interval", [0, 0.5], (0.0, 0.5)),
    ("strength", "strength", 1, 1.0),
    ("batch", "batch", np.int32(2), 2),
    ("seed", "seed", -1, -1),
    ("online", "online", True, True),
    ("dump", "dump", "folder", Path("folder")),
    ("options", "settings", {"num_frames": 16}, {"num_frames": 16}),
    ("inputs", "inputs", {"image_embeds": "1280"}, {"image_embeds": "1280"}),
]


@pytest.mark.parametrize(("option", "field", "value", "expected"), SAME)
def test_natural_values_are_taken(option: str, field: str, value: Any, expected: Any) -> None:
    assert getattr(read_options("ort-fp32", **{option: value}), field) == expected


REFUSED: list[tuple[str, Any]] = [
    *(("steps", value) for value in (0, True, 4.0, "4", [4, 0], {4: 4})),
    *(("size", value) for value in (0, True, 64.0, "64x64", (64, 64, 64), [(64, 0)], (True, 64))),
    *(("guidance", value) for value in ("7", float("nan"), True)),
    *(("guidance_interval", value) for value in (0.5, (0.1,), "ab", (0.1, None))),
    *(("strength", value) for value in (-0.1, 1.5, "1")),
    *(("batch", value) for value in (0, True, 1.0, None)),
    *(("seed", value) for value in (0.0, None)),
    *(("task", value) for value in ("inpainting", None)),
    *(("online", value) for value in (1, None)),
    *((option, 3) for option in ("sampler", "cache", "quant", "recipe", "calibration", "ip_adapter", "dump")),
    *(("options", value) for value in ([("num_frames", 16)], {1: 2})),
    ("min_psnr", "20"),
]


@pytest.mark.parametrize(("option", "value"), REFUSED)
def test_what_the_command_line_would_refuse_is_refused_with_its_value(option: str, value: Any) -> None:
    with pytest.raises(BuildError, match=r"is no size|is ") as refused:
        read_options("ort-fp32", **{option: value})
    assert refused.value.fix and (option == "size" or refused.value.where == option)


def test_a_source_that_is_no_path_is_refused() -> None:
    with pytest.raises(BuildError, match="source is 3"):
        build(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.zeros(2), {"frames": np.zeros(2)}, object()])
def test_an_argument_that_a_bundle_cannot_record_is_refused_before_the_work(value: Any) -> None:
    with pytest.raises(BuildError, match=f"connectors is of type {type(value).__name__}, which a bundle cannot record"):
        read_options("ort-fp32", options={"num_frames": 5, "connectors": value})
