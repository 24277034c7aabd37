"""Operators that the exporter lacks are computed by others as torch computes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from diffc.compiler.backends.onnx.decompositions import DECOMPOSITIONS
from diffc.compiler.backends.onnx.export import Onnx
from diffc.compiler.backends.onnx.exporter_input import ExporterInput
from diffc.compiler.errors import BackendError
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.ir.program import Graph, Value
from tests.tolerances import GRAPH

Results = Tensor | tuple[Tensor, ...]
X = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
FAR = torch.arange(90.0).reshape(1, 30, 3).sin()
VOLUME = torch.arange(2 * 3 * 7 * 5.0).sin().reshape(1, 2, 3, 7, 5)
KERNEL = torch.arange(4 * 2 * 8.0).cos().reshape(4, 2, 2, 2, 2)

FUNCTIONS: dict[str, Callable[[Tensor], Results]] = {
    "attention of 3 dimensions": lambda x: F.scaled_dot_product_attention(x, x, x + 1),
    "attention of 2 dimensions": lambda x: F.scaled_dot_product_attention(x[0], x[1], x[0], is_causal=True),
    "attention with a mask": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=(x > 0)[..., :1].mT),
    "attention of 5 dimensions": lambda x: F.scaled_dot_product_attention(*[x.reshape(1, 2, 3, 2, 5)] * 3, scale=0.3),
    "batch norm": lambda x: F.batch_norm(x, x[0, :, 0], x[1, :, 1].abs(), x[1, :, 2], x[0, :, 3]),
    "batch norm without scales": lambda x: F.batch_norm(x, x[0, :, 0], x[1, :, 1].abs()),
    "convolution without bias": lambda x: F.conv3d(VOLUME + x[0, 0, 0], KERNEL, padding=1),
    "cumulative product": lambda x: x.cumprod(1),
    "cumulative product of integers": lambda x: (x * 2).long().cumprod(-1),
    "cumulative maximum": lambda x: tuple(x.cummax(1)),
    "cumulative minimum": lambda x: tuple(x.round().cummin(2)),
    "median of all": lambda x: x.median(),
    "median of an axis": lambda x: tuple(x.median(1)),
    "k-th value": lambda x: x.kthvalue(2, 1, keepdim=True).values,
    "search": lambda x: torch.searchsorted(x.sort(-1).values, x[:, :, :3].contiguous(), right=True),
    "search in one list": lambda x: torch.searchsorted(x[0, :, 0].sort().values, x, side="left", out_int32=True),
    "distances": lambda x: torch.cdist(x, x + 1),
    "distances of 1": lambda x: torch.cdist(x, x[:, :3] + 1, p=1.0),
    "distances of many": lambda x: torch.cdist(FAR + x[0, 0, 0], FAR * 2),
    "both extremes": lambda x: tuple(torch.aminmax(x)),
    "both extremes of an axis": lambda x: tuple(torch.aminmax(x, dim=1, keepdim=True)),
    "pooling of volumes": lambda x: F.adaptive_avg_pool3d(VOLUME * x[0, 0, 0], (2, 3, 5)),
    "pooling with a divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "nearest voxels": lambda x: F.interpolate(VOLUME * x[0, 0, 0], (2, 9, 5), mode="nearest-exact"),
    "nearest voxels at a scale": lambda x: F.interpolate(VOLUME * x[0, 0, 0], scale_factor=0.7, mode="nearest-exact"),
    "nearest voxels of a size": lambda x: torch.ops.aten._upsample_nearest_exact3d(VOLUME * x[0, 0, 0], [4, 3, 8]),
    "filtered samples of aligned corners": lambda x: F.interpolate(
        x[None], (3, 9), mode="bilinear", antialias=True, align_corners=True
    ),
    "cubically filtered samples": lambda x: F.interpolate(x[None], (9, 2), mode="bicubic", antialias=True),
    "cubically filtered samples of aligned corners": lambda x: F.interpolate(
        x[None], (9, 3), mode="bicubic", antialias=True, align_corners=True
    ),
    "cubically filtered samples at a scale": lambda x: F.interpolate(
        x[None], scale_factor=(1.7, 0.6), mode="bicubic", antialias=True
    ),
    "filtered samples of a size": lambda x: torch.ops.aten._upsample_bilinear2d_aa(x[None], [4, 3], True),
    "cubically filtered samples of a size": lambda x: torch.ops.aten._upsample_bicubic2d_aa(x[None], [4, 3], False),
    "filtered samples at a scale": lambda x: F.interpolate(
        x[None], scale_factor=(1.7, 0.6), mode="bilinear", antialias=True
    ),
    "orthogonal columns": lambda x: tuple(torch.linalg.qr(x)),
    "orthogonal columns of a wide matrix": lambda x: tuple(torch.linalg.qr(x.mT)),
    "hypotenuse": lambda x: torch.hypot(x, x + 1),
    "sequences": lambda x: nn.utils.rnn.pad_sequence([x[0, :4], x[1]], batch_first=True, padding_value=2.0),
    "sequences from the left": lambda x: nn.utils.rnn.pad_sequence([x[0, :4], x[1]], padding_side="left"),
    "sequence alone": lambda x: nn.utils.rnn.pad_sequence([x[0]]),
    "short indices": lambda x: x[:, torch.arange(2).int()[None], (x[0, 0, :2] > 0).int()],
    "real transform": lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2, n=5),
    "real transform of two axes": lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho"), s=(6, 5)).abs(),
}


class Functions(nn.Module):
    """Compute all functions of the same array."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(result for function in FUNCTIONS.values() for result in listed(function(x)))


def listed(results: Results) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def lowered(module: nn.Module, folder: Path) -> tuple[Graph, onnxruntime.InferenceSession]:
    """Lower a module of one array as a graph, and open it in ONNX Runtime."""
    outputs = tuple(Value(f"y{at}", type_of(y)) for at, y in enumerate(listed(module(X))))
    graph = Graph("net", (Value("x", type_of(X)),), outputs, export("net", module, (X,)), "net")
    files = Onnx().lower([graph], "fp32", folder, lambda _: None)
    return graph, onnxruntime.InferenceSession(str(folder / files["net"]))


def test_every_function_is_what_torch_computes(tmp_path: Path) -> None:
    graph, session = lowered(Functions(), tmp_path)
    computed: list[NDArray[np.float32]] = session.run(None, {"x": X.numpy()})
    at = 0
    for name, function in FUNCTIONS.items():
        for expected in listed(function(X)):
            error = np.abs(computed[at] - expected.numpy()).max()
            assert computed[at].dtype == expected.numpy().dtype, name
            assert error <= GRAPH * max(1, expected.abs().max()), name
            at += 1
    targets = {node.target for node in graph.body.graph.nodes}
    assert targets >= DECOMPOSITIONS.keys(), "an operator is not tested"


def test_an_operator_without_a_form_is_named(tmp_path: Path) -> None:
    class Inverts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.inv(x[:, :5])

    with pytest.raises(BackendError, match=r"net has no ONNX form: .*aten\.linalg_inv"):
        lowered(Inverts(), tmp_path)


class Open(nn.Module):
    """Compute a function of an array whose second size is open."""

    def __init__(self, function: Callable[[Tensor], Results]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Results:
        return self.function(*tensors)


@pytest.mark.parametrize("name", ["cumulative product", "cumulative maximum", "median of all"])
def test_a_decomposition_of_one_size_is_refused_where_the_size_is_open(name: str) -> None:
    sizes = [{1: torch.export.Dim.DYNAMIC(min=5, max=100)}]
    body = export("net", Open(FUNCTIONS[name]), (X,), sizes=sizes)
    with pytest.raises(ValueError, match=r"decomposition of aten\..* depends on a size that each request decides"):
        ExporterInput.of(body)


def test_a_decomposition_along_other_sizes_leaves_a_size_open() -> None:
    sizes = [{1: torch.export.Dim.DYNAMIC(min=5, max=100)}]
    body = ExporterInput.of(export("net", Open(lambda x: x.cumprod(2)), (X,), sizes=sizes))
    longer = torch.cat([X, X], 1)
    torch.testing.assert_close(body.module()(longer), longer.cumprod(2))


def test_windows_that_are_cut_at_the_edge_have_no_divisor(tmp_path: Path) -> None:
    pooling = Open(lambda x: F.avg_pool2d(x, 2, ceil_mode=True, divisor_override=3))
    with pytest.raises(BackendError, match="net has no ONNX form: .*both ceil_mode and divisor_override"):
        lowered(pooling, tmp_path)
