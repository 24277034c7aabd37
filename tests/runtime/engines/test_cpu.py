"""Multiply 8-bit integers exactly, on CPUs with VNNI and without."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffc.compiler import capture, write_bundle
from diffc.compiler.driver import options
from diffc.compiler.metrics import sqnr
from diffc.passes.quantize import RECIPES
from diffc.runtime import load
from diffc.runtime.bundle.open import open_bundle
from diffc.runtime.engines import cpu
from diffc.runtime.engines.cpu import multiplies_bytes
from tests.tolerances import LARGE_BYTES_SQNR


@pytest.mark.parametrize(
    ("flags", "machine", "exact"),
    [
        ("avx2 avx512f avx512_vnni", "x86_64", True),
        ("avx2 avx_vnni", "AMD64", True),
        ("avx2 avx512f", "x86_64", False),
        ("", "AMD64", False),
        ("asimd", "aarch64", True),
    ],
)
def test_bytes_are_multiplied_where_their_sums_have_room(
    monkeypatch: pytest.MonkeyPatch, flags: str, machine: str, exact: bool
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: set(flags.split()))
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    assert multiplies_bytes.__wrapped__() is exact


class Signs(torch.nn.Module):
    """Have a layer in the middle whose weight and input are as large as eight bits can say, everywhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(256, 256, bias=False) for _ in range(3))
        for layer in self.layers:
            layer.weight.data = layer.weight.data.sign() * 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, middle, last = self.layers
        made: torch.Tensor = last(torch.tanh(middle(torch.tanh(1e3 * first(x)))))
        return made


def signs(folder: Path, backend: str) -> tuple[Path, np.ndarray]:
    """Build `Signs` for 8 bits, and give what it makes of the noise of seed 0 as well."""
    if backend == "ov":
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'diffc[openvino]'")
    model = Signs().requires_grad_(False)
    program = capture(lambda: model(torch.randn(1, 1, 4, 256)), {"model": model})
    x = torch.randn(1, 1, 4, 256, generator=torch.Generator("cpu").manual_seed(0))
    wanted: np.ndarray = model(x).movedim(1, -1).numpy()  # as pictures are given
    return write_bundle([program], folder / "x.diffc", f"{backend}-w8a8"), wanted


def drawn(bundle: Path) -> np.ndarray:
    return np.asarray(load(bundle)(seed=0, output="np"))


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("backend", ["ort", "ov"])
def test_sums_of_large_products_of_bytes_are_not_cut_off(
    monkeypatch: pytest.MonkeyPatch, backend: str, bits: int, tmp_path: Path
) -> None:
    if bits == 8:
        name = {"ort": "w8a8_onnx_runtime", "ov": "w8a8_openvino"}[backend]
        monkeypatch.setattr(options, "RECIPES", {**RECIPES, name: RECIPES["w8a8"]})
    bundle, wanted = signs(tmp_path, backend)
    manifest = open_bundle(bundle).manifest
    (graph,) = (name for name in manifest.graphs if manifest.component(name))
    assert manifest.has_reduced_range(graph) is (bits == 7)
    assert sqnr(drawn(bundle), wanted) > LARGE_BYTES_SQNR


@pytest.mark.parametrize("backend", ["ort", "ov"])
def test_without_vnni_bytes_are_multiplied_where_the_manifest_says_that_they_fit(
    monkeypatch: pytest.MonkeyPatch, backend: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu, "multiplies_bytes", lambda: False)
    bundle, wanted = signs(tmp_path, backend)
    in_bytes = drawn(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for graph in manifest["graphs"].values():
        del graph["reduced_range"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    in_float = drawn(bundle)
    assert not np.array_equal(in_bytes, in_float), "sums of floats are rounded"
    assert min(sqnr(in_bytes, wanted), sqnr(in_float, wanted)) > LARGE_BYTES_SQNR
