"""Targets that compute in 16 bits: the whole way from a checkpoint to pictures and the report."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from diffc.compiler import build
from diffc.compiler.backends.backend import GROUP
from diffc.compiler.backends.onnx.export import Onnx
from diffc.compiler.backends.ort import Ort
from diffc.compiler.errors import RecipeError
from diffc.compiler.metrics import psnr
from diffc.runtime import load
from tests.tolerances import HALF_PSNR
from tests.typed import computed

OPTIONS: Any = {"size": (16, 16), "steps": (2,)}


class Halves(Ort):
    """Compute in float16."""

    computes: ClassVar[Mapping[str, str]] = {"fp32": "float16", "w8a8": "float16"}
    dialect = Onnx.dialect


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a back end that computes in float16 in the place of a known one, so that bundles run."""
    module = ModuleType("half_backend")
    module.Ort, module.Halves = Ort, Halves  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "half_backend", module)
    values = {"ort": "half_backend:Ort", "onnx": "half_backend:Halves"}
    points = EntryPoints(EntryPoint(name, value, GROUP) for name, value in values.items())

    def chosen(**key: str) -> EntryPoints:
        return points.select(**key) if key["group"] == GROUP else entry_points(**key)

    monkeypatch.setattr("diffc.runtime.entry_points.entry_points", chosen)


def drawn(bundle: Path) -> NDArray[np.float32]:
    """Draw a picture, on [0, 1]."""
    return np.asarray(load(bundle)("a cat", seed=0, output="np"))


@pytest.fixture
def large(tiny_model: Path, tmp_path: Path) -> Path:
    """Copy the pipeline with a decoder whose features grow to more than float16 holds."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "large"))
    (file,) = (folder / "vae").glob("*.safetensors")
    weights = load_file(file)
    weights["decoder.mid_block.resnets.1.conv2.weight"] *= 1e6
    save_file(weights, file, {"format": "pt"})
    return folder


def test_what_a_decoder_cannot_hold_is_kept_and_reported(large: Path, tmp_path: Path) -> None:
    said = list[str]()
    made = build(large, "onnx-fp32", tmp_path / "half.diffc", progress=said.append, **OPTIONS)
    wanted = build(large, "ort-fp32", tmp_path / "float.diffc", **OPTIONS)
    assert psnr(drawn(made), drawn(wanted)) > HALF_PSNR
    report = json.loads((made / "precision.json").read_text())
    assert report["dtype"] == "float16" and {row["graph"] for row in report["wide"]} == {"vae_decode"}
    assert report["wide"][0]["layer"].startswith("decoder.mid_block.resnets.1")
    assert report["wide"][0]["layer"] in (made / "report.html").read_text()
    assert any("vae_decode in float32" in line for line in said)
    kinds = computed(made / "vae_decode.onnx")
    assert kinds["FLOAT", "Conv"] and kinds["FLOAT16", "Conv"] > 3 * kinds["FLOAT", "Conv"]
    assert {kind for type_, kind in computed(made / "unet.onnx") if type_ == "FLOAT"} == {"Cast"}
    sizes = [(each / "weights" / "unet.bin").stat().st_size for each in (made, wanted)]
    assert sizes[0] < 0.55 * sizes[1]


@pytest.mark.slow
def test_a_quantized_target_is_looked_at_once(tiny_model: Path, tmp_path: Path) -> None:
    said = list[str]()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    made = build(tiny_model, "onnx-w8a8", tmp_path / "half.diffc", calibration=prompts, progress=said.append, **OPTIONS)
    assert sum(line.startswith("calibrate") for line in said) == 1
    assert json.loads((made / "precision.json").read_text())["wide"] == []
    kinds = computed(made / "unet.onnx")
    assert kinds["FLOAT16", "QuantizeLinear"] and not kinds["FLOAT", "QuantizeLinear"]


def test_prompts_are_taken_where_a_range_is_looked_at_and_refused_elsewhere(tiny_model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    made = build(tiny_model, "onnx-fp32", tmp_path / "half.diffc", calibration=prompts, **OPTIONS)
    assert json.loads((made / "precision.json").read_text())["prompts"] == ["a cat", "a dog"]
    with pytest.raises(RecipeError, match="not quantized"):
        build(tiny_model, "ort-fp32", tmp_path / "float.diffc", calibration=prompts, **OPTIONS)
