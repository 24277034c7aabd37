"""Build bundles with TensorRT engines on the command line, on a machine without a GPU, and draw with what is there."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from diffc.compiler.backends.tensorrt import build
from diffc.runtime import load
from diffc.runtime.engines.tensorrt_library import INSTALL, RTX, installed
from diffc.runtime.errors import DiffcWarning
from tests.command_line import refused, succeeded
from tests.format.manifest_schema import schema_errors
from tests.test_quantized_bundles import PIPELINES, Source, in_float
from tests.tolerances import FOUR_BIT_PSNR, HALF_PSNR

pytestmark = pytest.mark.skipif(RTX not in installed(), reason=f"TensorRT for RTX is not installed: {INSTALL[RTX]}")


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Save a pipeline with a UNet."""
    return Source(PIPELINES["unet"], tmp_path_factory.mktemp("unet"))


@pytest.fixture(scope="module")
def bundle(unet: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it in four bits for two GPUs; tests must leave it as it is."""
    path = tmp_path_factory.mktemp("w4a8") / "x.diffc"
    unet.build(path, "trt-w4a8@sm86,sm120")
    return path


def test_its_manifest_fits_the_schema(bundle: Path) -> None:
    assert schema_errors(bundle) == []


def test_a_bundle_holds_an_engine_for_each_graph_of_a_component(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    with_weights = {name for name, graph in manifest["graphs"].items() if graph["component"]}
    assert set(manifest["engines"]) == with_weights
    for name, each in manifest["engines"].items():
        assert each["archs"] == ["sm86", "sm120"] and each["builder"].startswith("tensorrt-rtx ")
        assert each["file"] == f"engines/{name}.engine" and each["file"] in manifest["files"]


def test_its_report_says_what_was_built_and_what_otherwise_than_asked(bundle: Path) -> None:
    report = json.loads((bundle / "engines.json").read_text())
    assert report["unet"]["types"]["INT4"] > 0 and report["unet"]["types"]["INT8"] > 0
    assert report["unet"]["peak_bytes"] > 1e7 and report["unet"]["seconds"] > 0
    notes = json.loads((bundle / "quantization.json").read_text())["notes"]
    assert any(
        n.endswith("layers: TensorRT multiplies four-bit weights of convolutions with float activations") for n in notes
    )
    page = (bundle / "report.html").read_text()
    assert "Which engines were built" in page and "sm86 sm120" in page and "What computes in float16" in page


def test_without_a_gpu_it_draws_the_same_on_the_cpu_and_says_so(bundle: Path, unet: Source, tmp_path: Path) -> None:
    with pytest.warns(DiffcWarning, match="ort-w4a8"):
        assert np.isfinite(load(bundle)(seed=1, output="np")).all()
    picture, wanted = in_float(bundle, unet, tmp_path)
    assert 10 * np.log10(1 / float(np.mean((picture - wanted) ** 2))) > FOUR_BIT_PSNR


@pytest.mark.slow
def test_with_and_without_guidance_one_engine_serves(tmp_path: Path) -> None:
    guided = Source("StableDiffusionPipeline", tmp_path)
    succeeded("build", guided.path, "--target", "trt-fp16@sm89", *guided.options, "-o", tmp_path / "x.diffc")
    manifest = json.loads((tmp_path / "x.diffc" / "manifest.json").read_text())
    graphs, engines = manifest["graphs"], manifest["engines"]
    assert graphs["unet"]["file"] == graphs["unet_2"]["file"] == "unet.onnx"
    assert engines["unet"]["file"] == engines["unet_2"]["file"] == "engines/unet.engine"
    succeeded("build", guided.path, *guided.options, "-o", tmp_path / "float.diffc")
    drawn, wanted = (load(tmp_path / f"{name}.diffc") for name in ("x", "float"))
    for guidance in (1.0, 5.0):
        given = {"seed": 1, "guidance_scale": guidance, "output": "np"}
        with pytest.warns(DiffcWarning, match="ort-fp16") if guidance == 1.0 else nullcontext():
            picture = drawn("a red circle", **given)
        error = float(np.mean((np.asarray(picture) - wanted("a red circle", **given)) ** 2))
        assert 10 * np.log10(1 / error) > HALF_PSNR


def test_a_builder_that_crashes_leaves_no_bundle(unet: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_builder.py").write_text("import os\nos.abort()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "BUILDER", "broken_builder")
    said = refused("build", unet.path, "--target", "trt-fp16@sm89", *unet.options, "-o", "x.diffc")
    assert "the builder crashed (SIGABRT)" in said
    assert not [path for path in tmp_path.iterdir() if "diffc" in path.name]
