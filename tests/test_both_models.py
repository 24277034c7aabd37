"""Build both trained models for every back end, and open what was built: in the runtime, and as other tools do."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffc.compiler.driver import phases
from diffc.compiler.driver.build import phases_to_bundle
from diffc.compiler.driver.options import read_options
from diffc.compiler.driver.state import State, run_phases
from diffc.compiler.recipe import name_of
from diffc.runtime import DiffcWarning, load
from diffc.runtime.engines.tensorrt_library import INSTALL, RTX, installed
from tests.conftest import DIT, PROMPT, UNET
from tests.elsewhere import check_by_onnx_runtime, check_by_path
from tests.tolerances import PICTURE

Image = np.ndarray[Any, Any]

TENSORRT = pytest.param(
    "trt-fp32@sm89",
    marks=pytest.mark.skipif(RTX not in installed(), reason=f"TensorRT for RTX is not installed: {INSTALL[RTX]}"),
)


@pytest.fixture(scope="module", params=[UNET, DIT], ids=lambda model: model.stem)
def staged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> State:
    """Compile a model up to where back ends differ, for one step, with guidance and without."""
    state = State(read_options("ort-fp32", steps=(1,)), tmp_path_factory.mktemp("unused"), request.param)
    return run_phases(state, [phases.load, phases.trace, phases.capture, phases.normalize, phases.stage])


def built(staged: State, target: str, folder: Path) -> Path:
    """Build a bundle for a target out of what was compiled."""
    options = read_options(target, steps=(1,))
    rest = [phase for phase in phases_to_bundle(options) if name_of(phase) not in ("normalize", "stage")]
    folder.mkdir()
    run_phases(replace(staged, options=options, folder=folder), rest)
    return folder


def image_of(bundle: Path) -> Image:
    """Sample an image, where there is no GPU with ONNX Runtime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DiffcWarning)
        return load(bundle)(PROMPT, seed=1, output="np")


@pytest.fixture(scope="module")
def reference(staged: State, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Sample with ONNX Runtime what other tests compare with diffusers."""
    return image_of(built(staged, "ort-fp32", tmp_path_factory.mktemp("reference") / "x.diffc"))


@pytest.mark.parametrize("target", ["onnx-fp32", "ov-fp32", TENSORRT])
def test_a_back_end_builds_what_samples_the_same_and_opens_elsewhere(
    staged: State, reference: Image, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = built(staged, target, tmp_path / "x.diffc")
    assert reference.std() > 0.01, "an image that could differ"
    assert np.abs(image_of(bundle) - reference).max() <= PICTURE
    manifest = json.loads((bundle / "manifest.json").read_text())
    with_engine = (
        {name for name, graph in manifest["graphs"].items() if graph["component"]} if "trt" in target else set()
    )
    assert set(manifest["engines"]) == with_engine
    monkeypatch.chdir(tmp_path)
    for file in {graph["file"] for graph in manifest["graphs"].values()}:
        check_by_path(bundle / file)
        check_by_onnx_runtime(bundle / file)
