"""An estimate says what the build then takes, and reads no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from torch import nn

from diffc.compiler.checkpoint.load import load
from diffc.compiler.commands.cli import main
from diffc.compiler.commands.estimate import estimate
from diffc.compiler.errors import LoadError, TargetError
from diffc.compiler.graph.lazy_weights import EAGER_ELEMENTS, Weight
from tests.conftest import UNET


def test_no_large_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[Weight]()
    original = Weight._slices
    monkeypatch.setattr(Weight, "_slices", lambda weight: (read.append(weight), original(weight))[1])
    estimate(UNET)
    assert read and max(weight.source.numel() for weight in read) <= EAGER_ELEMENTS


def test_the_size_is_that_of_the_real_bundle(bundle: Path) -> None:
    real = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    said = estimate(UNET)
    assert said["bundle_bytes"] == pytest.approx(real, rel=0.1)
    assert real < said["disk_bytes"]


def test_half_precision_saves_two_bytes_of_each_large_weight() -> None:
    modules = [c for c in load(UNET).components.values() if isinstance(c, nn.Module)]
    large = sum(p.numel() for module in modules for p in module.parameters() if p.numel() > EAGER_ELEMENTS)
    assert estimate(UNET)["bundle_bytes"] - estimate(UNET, "ort-fp16")["bundle_bytes"] == 2 * large


def test_the_command_says_all_of_it() -> None:
    result = CliRunner().invoke(main, ["estimate", str(UNET), "--target", "onnx-bf16", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    components = load(UNET).components
    wanted = {n: sum(p.numel() for p in c.parameters()) for n, c in components.items() if isinstance(c, nn.Module)}
    assert found["parameters"] == wanted
    assert found["target"] == "onnx-bf16"
    assert found["memory_bytes"] > 1 << 20 and found["free_bytes"] > 0
    assert "very roughly" in result.stderr


def test_the_time_grows_with_graphs_and_with_bytes() -> None:
    full, half = estimate(UNET), estimate(UNET, "ort-fp16")
    assert full["seconds"] > half["seconds"] > 0


def test_what_cannot_be_estimated(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no"):
        estimate(tmp_path / "none")
    with pytest.raises(TargetError, match="no precision"):
        estimate(UNET, "ort-w9")
