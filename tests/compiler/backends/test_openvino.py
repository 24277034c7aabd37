"""Build for OpenVINO, and compare what it draws with diffusers and with ONNX Runtime."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffc.compiler import capture, write_bundle
from diffc.compiler.backends.openvino import OpenVino
from diffc.compiler.errors import BackendError
from diffc.runtime import load
from diffc.runtime.engines.openvino import INSTALL, computes, openvino_core
from tests.command_line import diffc, refused, succeeded
from tests.compiler.backends.onnx.test_export import Divides, Masks, Rearranges, Splits, Squeezes, Writes
from tests.tolerances import GRAPH, PICTURE, VERIFIED_PSNR, VERIFIED_PSNR_BF16
from tests.zoo import ZOO
from tests.zoo.sweep import build_options


class Determines(nn.Module):
    """Take a determinant, for which OpenVINO has no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(x)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny pipeline that attends with as many heads as tokens."""
    folder = tmp_path_factory.mktemp("source") / "model"
    ZOO["WanPipeline"]().pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it for OpenVINO; tests must leave it as it is."""
    bundle = tmp_path_factory.mktemp("ov") / "tiny.diffc"
    succeeded("build", source, "--target", "ov-fp32", "-o", bundle, *build_options(ZOO["WanPipeline"]()))
    return bundle


@pytest.fixture
def in_bf16(made: Path, tmp_path: Path) -> Path:
    """Have the same graphs computed in bfloat16, from weights in float32."""
    copied = shutil.copytree(made, tmp_path / "tiny.diffc")
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"target": "ov-bf16"}))
    return copied


def test_a_bundle_samples_what_diffusers_samples(made: Path, source: Path, tmp_path: Path) -> None:
    succeeded("run", made, "a red circle", "--seed", "0", "-o", tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as drawn:
        assert drawn.size == (16, 16)
    found = succeeded("verify", made, "--against", source, "--prompts", prompts(tmp_path))
    assert found["max_abs"] <= PICTURE and found["psnr"] >= VERIFIED_PSNR


def test_bfloat16_is_computed_in_and_still_near(in_bf16: Path, source: Path, tmp_path: Path) -> None:
    psnr = succeeded("verify", in_bf16, "--against", source, "--prompts", prompts(tmp_path))["psnr"]
    assert psnr >= VERIFIED_PSNR_BF16
    assert (psnr < VERIFIED_PSNR) == ("BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def prompts(folder: Path) -> Path:
    (folder / "prompts.txt").write_text("a red circle\n")
    return folder / "prompts.txt"


def test_the_runtime_knows_what_each_precision_computes_in() -> None:
    assert [OpenVino.bytes_per_weight(name) for name in ("fp32", "fp16", "bf16")] == [4, 2, 2]
    assert {computes(precision) for precision in OpenVino.precisions} <= {"f32", "bf16"}
    assert (computes("fp32"), computes("fp16")) == ("f32", "f32")


def test_graphs_and_weights_are_those_for_onnx_runtime(tmp_path: Path) -> None:
    model = nn.Linear(8, 64)
    program = capture(lambda: model(torch.randn(2, 5, 8)), {"model": model})
    for precision in ("fp32", "fp16", "bf16"):
        wanted, made = (
            write_bundle([program], tmp_path / f"{backend}-{precision}.diffc", f"{backend}-{precision}")
            for backend in ("ort", "ov")
        )
        assert {file.name for file in made.rglob("*")} >= {"model.onnx", "model.bin"}
        for file in ("model.onnx", "weights/model.bin"):
            assert (made / file).read_bytes() == (wanted / file).read_bytes()


@pytest.mark.parametrize("kind", [Divides, Squeezes, Masks, Rearranges, Writes, Splits])
def test_a_graph_computes_what_torch_computes(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = kind()
    program = capture(lambda: model(torch.randn(2, 5, 8)), {"model": model})
    sampler = load(write_bundle([program], tmp_path / "x.diffc", "ov-fp32"))
    got = sampler(seed=0, num_images=2, output="np")
    assert len(got) == 2
    wanted = model(torch.randn(2, 5, 8, generator=torch.Generator("cpu").manual_seed(0))).numpy()
    assert np.abs(got - wanted).max() <= GRAPH * np.abs(wanted).max()


def test_what_openvino_cannot_read_is_refused_with_its_reason(tmp_path: Path) -> None:
    model = Determines()
    program = capture(lambda: model(torch.randn(2, 4, 4)), {"model": model})
    with pytest.raises(BackendError, match="OpenVINO refuses model: No conversion rule found for operations: Det"):
        write_bundle([program], tmp_path / "x.diffc", "ov-fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_openvino_says_how_to_get_it(
    made: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino_core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "diffc.compiler.backends.openvino")
    monkeypatch.setattr("diffc.runtime.engines.openvino.openvino_version", lambda: None)
    monkeypatch.setattr("diffc.compiler.commands.doctor.openvino_version", lambda: None)
    try:
        assert INSTALL in refused("run", made, "a red circle", "-o", tmp_path / "x.gif")
        assert "pip install 'diffc[openvino]'" in refused("build", source, "--target", "ov-fp32")
        found = succeeded("doctor", made)
        assert succeeded("inspect", made)["target"] == "ov-fp32"
    finally:
        openvino_core.cache_clear()
    assert not found["checks"]["bundle"]["ok"] and INSTALL in found["checks"]["bundle"]["detail"]
    assert INSTALL in found["checks"]["engine"]["detail"]
    assert not any(target.startswith("ov-") for target in found["targets"]) and "ort-fp32" in found["targets"]


def test_doctor_says_which_engine_to_use(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, said in (
        ("ov", "on this CPU the targets ov-"),
        ("ort", "the target ort-fp32 is the best for this CPU"),
    ):
        monkeypatch.setattr("diffc.compiler.commands.doctor.recommended", lambda backend=backend: backend)
        found = succeeded("doctor", made)
        assert found["engine"] == backend and said in found["checks"]["engine"]["detail"]
        assert found["checks"]["bundle"]["ok"] and {"ov-fp32", "ov-bf16"} <= set(found["targets"])


def test_a_run_says_in_a_line_that_openvino_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(4, 4)
    program = capture(lambda: model(torch.randn(1, 3, 4, 4)), {"model": model})
    monkeypatch.setattr("diffc.runtime.engines.openvino.recommended", lambda: "ov")
    for target, large, lines in (("ort-fp16", 0, 1), ("ort-fp16", 1 << 40, 0), ("ov-fp32", 0, 0)):
        monkeypatch.setattr("diffc.runtime.engines.openvino.LARGE", large)
        path = write_bundle([program], tmp_path / f"{target}-{large}.diffc", target)
        said = diffc("run", path, "", "-o", tmp_path / "x.npy").stderr
        assert said.count("this CPU is faster with OpenVINO: build for ov-fp16\n") == lines
