"""Lower graphs to ONNX, and compare what ONNX Runtime makes of them with what torch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from diffc.compiler import capture
from diffc.compiler.backends.onnx.export import Onnx
from tests.elsewhere import check_by_onnx_runtime, check_by_path
from tests.tolerances import GRAPH


class Divides(nn.Module):
    """Keep a division from 0/0 with a number that is easily taken for nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() / (x.relu() + 1e-15)


class Squeezes(nn.Module):
    """Squeeze a dimension that may be 1, and here is not."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).squeeze(1)


class Masks(nn.Module):
    """Attend with one mask for all queries."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x[:, None]
        mask = (torch.arange(x.shape[1]) < 3)[None, None, None].expand(len(x), 1, 1, -1)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)[:, 0]


class Rearranges(nn.Module):
    """Lay the result of attention out anew, which no kernel's way to store it may forbid."""

    def forward(self, x: Tensor) -> Tensor:
        heads = x.repeat(1, 64, 1).unflatten(2, (2, -1)).transpose(1, 2)
        bias = torch.zeros(1, 2, heads.shape[2], heads.shape[2])
        out = nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=bias)
        return out.transpose(1, 2).reshape(len(x), heads.shape[2], -1)


class Writes(Rearranges):
    """Do the same after a write in place, for which a graph is traced twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clone().add_(1.0))


class Splits(nn.Module):
    """Split into so many parts that the list of their sizes is no small tensor."""

    def forward(self, x: Tensor) -> Tensor:
        sizes = [1 + i % 2 for i in range(200)]
        return torch.cat(x.repeat(1, 1, 38)[..., :300].split_with_sizes(sizes, 2)[::-1], 2)


class Thresholds(nn.Module):
    """Clamp each row at its own quantile, as dynamic thresholding does, with bounds of two kinds of number."""

    def forward(self, x: Tensor) -> Tensor:
        bound = torch.quantile(x.flatten(1).abs(), 0.7, dim=1).clamp(1, 1.5)[:, None, None]
        return torch.clamp(x, -bound, bound) / bound


class Moves(nn.Module):
    """Use operators that the exporter knows by their parts only: a composite view, and one that has a decomposition."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.hardtanh(torch.addcdiv(x.movedim(1, 2), x.mT, x.mT.exp())).movedim(1, 2)


class Halves(nn.Module):
    """Know all operators whole: views that PyTorch takes apart, conversions that are needed and those that are not."""

    def forward(self, x: Tensor) -> Tensor:
        one, two = nn.functional.dropout(x, training=False).float().flatten(1).chunk(2, dim=1)
        return (one.type_as(two) + two.half().float().contiguous()).narrow(1, 3, 6)


@pytest.mark.parametrize("kind", [Divides, Squeezes, Masks, Rearranges, Writes, Splits, Thresholds, Moves, Halves])
def test_a_graph_computes_what_torch_computes(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = kind()

    def sample() -> Tensor:
        return model(torch.randn(2, 5, 8))

    program = capture(sample, {"model": model})
    files = Onnx().lower(program.graphs, "fp32", tmp_path, lambda _: None)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)) * (torch.arange(5) > 0)[:, None]
    session = onnxruntime.InferenceSession(str(tmp_path / files["model"]))
    [got] = session.run(None, {"x": x.numpy()})
    wanted = model(x).numpy()
    assert np.abs(got - wanted).max() <= GRAPH * np.abs(wanted).max()


def test_a_graph_opens_in_other_tools_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(8, 64), torch.randn(2, 5, 8)
    program = capture(lambda: model(torch.randn(2, 5, 8)), {"model": model})
    (tmp_path / "bundle").mkdir()
    files = Onnx().lower(program.graphs, "fp32", tmp_path / "bundle", lambda _: None)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in (tmp_path / "bundle", Path("../bundle")):
        file = folder / files["model"]
        assert onnx.load(file, load_external_data=False).graph.initializer[0].external_data
        check_by_path(file)
        check_by_onnx_runtime(file)
    [got] = onnxruntime.InferenceSession(str(file)).run(None, {"input": x.numpy()})
    assert np.abs(got - model(x).detach().numpy()).max() <= GRAPH
