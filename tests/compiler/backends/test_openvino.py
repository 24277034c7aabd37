"""Build for OpenVINO, and compare what it draws with diffusers and with ONNX Runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffc.compiler import build, capture, write_bundle
from diffc.compiler.errors import BackendError
from diffc.runtime import load
from diffc.runtime.engines import INSTALL, openvino_core
from tests.compiler.backends.test_onnx import Divides, Masks, Rearranges, Splits, Squeezes, Writes
from tests.conftest import DIT, PROMPT, UNET
from tests.test_cli import diffc, refused, succeeded
from tests.test_zoo_bundles import build_options
from tests.tolerances import GRAPH, PICTURE, VERIFIED_PSNR, VERIFIED_PSNR_BF16
from tests.zoo import ZOO

SOURCES = {"unet": UNET, "dit": DIT}


class Determines(nn.Module):
    """Take a determinant, for which OpenVINO has no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(x)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the UNet for OpenVINO; tests must leave it as it is."""
    return build(UNET, "ov-fp32", tmp_path_factory.mktemp("ov") / "shapes.diffc", steps=(4, 2))


@pytest.mark.parametrize("name", list(SOURCES))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_examples_are_built_drawn_and_verified(name: str, precision: str, tmp_path: Path) -> None:
    bundle, floor = tmp_path / "x.diffc", VERIFIED_PSNR if precision == "fp32" else VERIFIED_PSNR_BF16[name]
    succeeded("build", SOURCES[name], "--target", f"ov-{precision}", "--steps", "4", "-o", bundle)
    succeeded("run", bundle, PROMPT, "--seed", "0", "-o", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as drawn:
        assert drawn.size == (64, 64)
    found = succeeded("verify", bundle, "--against", SOURCES[name], "--min-psnr", str(floor))
    is_faithful = found["psnr"] >= VERIFIED_PSNR
    assert is_faithful == (precision == "fp32" or not computes_in_bf16()), "bfloat16 is seen"


def computes_in_bf16() -> bool:
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_half_precision_storage_computes_in_float32(tmp_path: Path, made: Path) -> None:
    half = build(UNET, "ov-fp16", tmp_path / "half.diffc", steps=[2])
    stored = [sum(path.stat().st_size for path in (folder / "weights").iterdir()) for folder in (half, made)]
    assert stored[0] < 0.52 * stored[1]
    found = succeeded("verify", half, "--against", UNET)
    assert found["psnr"] >= VERIFIED_PSNR, "the checkpoint is stored in float16: nothing is lost"


def test_graphs_and_weights_are_those_for_onnx_runtime(made: Path, bundle: Path) -> None:
    def numbers(folder: Path) -> dict[str, bytes]:
        files = [*folder.rglob("*.onnx"), *folder.rglob("*.bin")]
        return {path.name: path.read_bytes() for path in files}

    assert numbers(made) == numbers(bundle)
    drawn, wanted = (load(path)(PROMPT, seed=3, output="np") for path in (made, bundle))
    assert np.abs(drawn - wanted).max() <= PICTURE


@pytest.mark.parametrize("kind", [Divides, Squeezes, Masks, Rearranges, Writes, Splits])
def test_a_graph_computes_what_torch_computes(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = kind()
    program = capture(lambda: model(torch.randn(2, 5, 8)), {"model": model})
    sampler = load(write_bundle([program], tmp_path / "x.diffc", "ov-fp32"))
    got = sampler(seed=0, num_images=2, output="np")
    assert len(got) == 2
    wanted = model(torch.randn(2, 5, 8, generator=torch.Generator("cpu").manual_seed(0))).numpy()
    assert np.abs(got - wanted).max() <= GRAPH * np.abs(wanted).max()


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "PixArtSigmaPipeline",
        "WanPipeline",
        "StableDiffusionControlNetPipeline",
    ],
)
def test_pipelines_draw_what_diffusers_draws(name: str, tmp_path: Path) -> None:
    entry = ZOO[name]()
    entry.pipeline.save_pretrained(tmp_path / "model")
    bundle = tmp_path / "x.diffc"
    succeeded("build", tmp_path / "model", "--target", "ov-fp32", "-o", bundle, *build_options(entry))
    assert succeeded("verify", bundle, "--against", tmp_path / "model")["max_abs"] <= PICTURE


def test_what_openvino_cannot_read_is_refused_with_its_reason(tmp_path: Path) -> None:
    model = Determines()
    program = capture(lambda: model(torch.randn(2, 4, 4)), {"model": model})
    with pytest.raises(BackendError, match="OpenVINO refuses model: No conversion rule found for operations: Det"):
        write_bundle([program], tmp_path / "x.diffc", "ov-fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_openvino_says_how_to_get_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino_core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "diffc.compiler.backends.openvino")
    monkeypatch.setattr("diffc.runtime.engines.openvino_version", lambda: None)
    monkeypatch.setattr("diffc.compiler.doctor.openvino_version", lambda: None)
    try:
        assert INSTALL in refused("run", made, PROMPT, "-o", tmp_path / "x.png")
        assert "pip install 'diffc[compiler,openvino]'" in refused("build", UNET, "--target", "ov-fp32")
        found = succeeded("doctor", made)
        assert succeeded("inspect", made)["target"] == "ov-fp32"
    finally:
        openvino_core.cache_clear()
    assert not found["checks"]["bundle"]["ok"] and INSTALL in found["checks"]["bundle"]["detail"]
    assert INSTALL in found["checks"]["engine"]["detail"]
    assert not any(target.startswith("ov-") for target in found["targets"]) and "ort-fp32" in found["targets"]


def test_doctor_says_which_engine_to_use(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, said in (("ov", "on this CPU the targets ov-"), ("ort", "the target ort-fp32 is what this CPU")):
        monkeypatch.setattr("diffc.compiler.doctor.recommended", lambda backend=backend: backend)
        found = succeeded("doctor", made)
        assert found["engine"] == backend and said in found["checks"]["engine"]["detail"]
        assert found["checks"]["bundle"]["ok"] and {"ov-fp32", "ov-bf16"} <= set(found["targets"])


def test_a_run_says_in_a_line_that_openvino_is_faster(
    made: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffc.runtime.engines.recommended", lambda: "ov")
    for path, large, lines in ((bundle, 0, 1), (bundle, 1 << 40, 0), (made, 0, 0)):
        monkeypatch.setattr("diffc.runtime.engines.LARGE", large)
        said = diffc("run", path, PROMPT, "--program", "text_to_image_2", "-o", tmp_path / "x.png").stderr
        assert said.count(f"this CPU is faster with OpenVINO: build for ov-fp32 ({INSTALL})") == lines
