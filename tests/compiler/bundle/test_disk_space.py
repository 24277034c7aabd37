"""A build says how much disk and memory it needs, and takes none where there is less."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffc.compiler import build
from diffc.compiler.bundle.atomic_folder import check_space
from diffc.compiler.bundle.disk_space import OVERHEAD, bytes_needed
from diffc.compiler.checkpoint.load import load
from diffc.compiler.errors import BuildError
from diffc.compiler.graph import evaluate as graph_evaluate
from diffc.runtime.memory import free_memory
from tests.zoo import ZOO


def test_counts_each_weight_as_it_is_stored_and_tied_ones_once() -> None:
    one, other = nn.Linear(128, 128), nn.Linear(128, 128)
    other.weight = one.weight
    small = 2 * 128 * 4
    assert bytes_needed([one, other], 4) == 128 * 128 * 4 + small + OVERHEAD
    assert bytes_needed([one, other], 0.5) == 128 * 128 // 2 + small + OVERHEAD


def no_more_than_stated(model: Path, bundle: Path, lines: list[str], bytes_per_weight: float) -> bool:
    """Return whether a bundle is as small as its build stated, which is by the sizes of its weights."""
    modules = [part for part in load(model).components.values() if isinstance(part, nn.Module)]
    needed = bytes_needed(modules, bytes_per_weight)
    assert f"at most {needed / 1e9:.2f} GB of disk" in lines
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) <= needed


def test_a_bundle_takes_no_more_than_was_said(tiny_model: Path, tiny_build: tuple[Path, list[str]]) -> None:
    assert no_more_than_stated(tiny_model, *tiny_build, 4)


@pytest.mark.slow
def test_a_bundle_in_16_bits_takes_no_more_than_was_said(tiny_model: Path, tmp_path: Path) -> None:
    lines = list[str]()
    bundle = build(tiny_model, "ort-fp16", tmp_path / "x.diffc", steps=[1], size=(16, 16), progress=lines.append)
    assert no_more_than_stated(tiny_model, bundle, lines, 2)


def test_too_little_disk_is_said_before_anything_is_traced(
    saved_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000_000))
    check_space(50_000_000, tmp_path)
    said: list[str] = []
    with pytest.raises(BuildError, match=r"needs up to 0.07 GB of disk, and there are 0.05 GB\n  at:  /.*\n  fix: "):
        build(saved_pipeline, output=tmp_path / "x.diffc", progress=said.append)
    assert said == ["load"]
    assert list(tmp_path.iterdir()) == []


def test_memory_is_what_the_system_says(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 100 kB\nMemAvailable:   20 kB\nSwapFree:  3 kB\n")
    assert free_memory(info) == 23 * 1024
    assert free_memory(tmp_path / "none") is None


def test_too_little_memory_is_said_before_weights_are_read_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = ZOO["StableDiffusionPipeline"]().pipeline
    pipeline.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(graph_evaluate, "free_memory", lambda: 50_000)
    said = r"running text_encoder needs 0.\d GB of memory, and there are 0.0 GB\n  at:  .*text_encoder\n  fix: "
    with pytest.raises(BuildError, match=said):
        build(tmp_path / "model", "ort-w8a8", tmp_path / "x.diffc", steps=[1], size=(16, 16))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
