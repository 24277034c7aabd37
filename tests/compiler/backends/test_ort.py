"""Lower for ONNX Runtime: which schemes its kernels compute, and what it refuses before a bundle is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from diffc.compiler import capture
from diffc.compiler.backends.ort import Ort
from diffc.compiler.errors import BackendError
from diffc.compiler.ir.program import Graph
from diffc.compiler.quantization.formats import Scheme, parse_spec

INTEGERS, GROUPS = ("int8:channel", "uint8:tensor"), ("int4:group=32", "int4:group=32:dynamic")


@pytest.mark.parametrize(
    ("kind", "weight", "activation", "adapted", "note"),
    [
        ("linear", "int4:group=32", "float", "weight int4:group=32", ""),
        ("linear", *INTEGERS, "weight int8:channel, activation uint8:tensor", ""),
        ("conv", *INTEGERS, "weight int8:channel, activation uint8:tensor, output uint8:tensor", ""),
        ("conv", "int8:channel", "int8:token", "weight int8:channel, activation int8:tensor:dynamic", "step-indexed"),
        ("conv", "int8:channel", "int8:tensor:step", "weight int8:channel, activation int8:tensor:step", "float32"),
        ("linear", "e4m3:channel", "e4m3:tensor", "weight e4m3:channel, activation e4m3:tensor", "computes e4m3 in"),
        ("linear", *GROUPS, "weight int4:group=32, activation int4:group=32:dynamic", "less than 8 bits"),
        ("linear", "nvfp4", "int8:token", "weight e2m1:group=16:scale=e4m3, activation int8:token", ""),
    ],
)
def test_a_scheme_becomes_what_a_kernel_computes(
    kind: str, weight: str, activation: str, adapted: str, note: str
) -> None:
    scheme, reason = Ort.adapted(kind, Scheme(parse_spec(weight), parse_spec(activation)))
    assert str(scheme) == adapted
    assert note in reason and bool(note) == bool(reason)


def graph_of(model: nn.Module, *shape: int) -> Graph:
    """Capture a model as one graph."""
    (graph,) = capture(lambda: model(torch.randn(*shape)), {"model": model}).graphs
    return graph


def test_a_graph_that_onnx_runtime_has_no_kernel_for_is_refused_by_name(tmp_path: Path) -> None:
    class Halved(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(x.bfloat16(), 2).float()

    with pytest.raises(BackendError, match="ONNX Runtime refuses model: .*AveragePool") as refused:
        Ort().lower([graph_of(Halved(), 1, 4, 8, 8)], "fp32", tmp_path, lambda _: None)
    assert refused.value.where == "component model" and "onnx-fp32" in str(refused.value.fix)


def test_each_graph_is_checked_and_progress_names_it(tmp_path: Path) -> None:
    lines = list[str]()
    files = Ort().lower([graph_of(nn.Linear(8, 8), 2, 8)], "fp32", tmp_path, lines.append)
    assert lines[-1] == "check model" and (tmp_path / files["model"]).is_file()
