"""Engines of TensorRT for RTX, built without a GPU: what they hold, and what is refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from diffc.compiler.backends.backend import Lowered, find_backend
from diffc.compiler.backends.target import Target, parse_target
from diffc.compiler.errors import TargetError
from diffc.compiler.ir.program import Graph
from diffc.compiler.metrics import sqnr
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.passes.mixed_precision import mixed_precision
from diffc.passes.quantize import RECIPES
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.runtime.engines.tensorrt_library import INSTALL, RTX, architectures, find_library, installed
from tests.compiler.backends.onnx.test_typed import transformer, unet
from tests.one_graph import plan_of, run
from tests.quantized_graphs import TRT_FP4DynamicQuantize
from tests.tolerances import TENSORRT_SQNR

pytestmark = pytest.mark.skipif(RTX not in installed(), reason=f"TensorRT for RTX is not installed: {INSTALL[RTX]}")

PRECISIONS = ("fp32", "fp16", "bf16", "w8a8", "w4a16", "w4a8", "fp8", "fp4")

MORE = 1.1, 1.5e6
"""How much larger than its weights an engine may be: a share, and kernels and what describes them, in bytes."""


def typed(plan: Plan, precision: str) -> Graph:
    """Give the graph of a plan as the back end is given it."""
    backend = find_backend("trt")
    if precision in RECIPES:
        recipe = RECIPES[precision]

        def scheme_of(layer: Layer) -> Scheme:
            specs = {"linear": recipe.linear, "conv": recipe.conv}.get(layer.kind, ("float", "float"))
            columns = layer.weight[0].numel() if layer.weight is not None else 1
            specs = (
                (specs[0], specs[1])
                if columns % 64 == 0
                else (specs[0].replace("64", "16").replace("32", "16"), specs[1])
            )
            return backend.adapted(layer.kind, Scheme(*map(parse_spec, specs)))[0]

        plan = plan.mapped(lambda layer: replace(layer, scheme=scheme_of(layer)))
        (program,) = applied(round_to_nearest(calibrate_ranges(plan, by="minmax")))
    else:
        (program,) = plan.programs
    (graph,) = program.graphs
    dtype = backend.computes.get(precision)
    return graph if dtype is None else mixed_precision(graph, dtype=getattr(torch, dtype))


def built(graph: Graph, precision: str, folder: Path, archs: tuple[str, ...] = ()) -> tuple[Path, dict[str, object]]:
    """Lower a graph and build its engine; give its ONNX file and what the report says of the engine."""
    backend = find_backend("trt")()
    files = backend.lower([graph], precision, folder, lambda _: None)
    (engine,) = backend.engines(Lowered([graph], files, precision, archs, folder, lambda _: None)).values()
    assert (folder / engine.file).stat().st_size == vars(engine)["bytes"]
    return folder / files[graph.name], vars(engine)


LONG = [
    pytest.param(unet, name, marks=() if name in ("fp16", "w8a8", "fp4") else pytest.mark.slow) for name in PRECISIONS
]


@pytest.mark.parametrize(("make", "precision"), LONG + [(transformer, name) for name in PRECISIONS])
def test_each_precision_builds_for_each_gpu_that_has_it_and_says_what_the_model_says(
    tmp_path: Path, make: Callable[[], nn.Module], precision: str
) -> None:
    random = torch.Generator().manual_seed(0)
    feeds = [(torch.randn(2, 4, 8, 8, generator=random), torch.tensor([t, t])) for t in (901.0, 401.0)]
    plan = plan_of(make(), feeds, "float")
    graph = typed(plan, precision)
    file, engine = built(graph, precision, tmp_path)
    assert engine["archs"] == find_backend("trt").archs[precision]
    model = onnx.load(file, load_external_data=False)
    onnx.load_external_data_for_model(model, str(tmp_path))
    ports = {port.name: x.numpy() for port, x in zip(graph.inputs, feeds[0], strict=True)}
    (made,) = ReferenceEvaluator(model, new_ops=[TRT_FP4DynamicQuantize]).run(None, ports)  # type: ignore[arg-type]
    wanted = run(plan.programs, feeds[:1])[0].detach().numpy()
    assert sqnr(np.asarray(made), wanted) > TENSORRT_SQNR[precision]


class Wide(nn.Module):
    """Have weights that are large beside what describes them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(1024, 1024), nn.SiLU())))
        self.conv = nn.Conv2d(256, 256, 3, padding=1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Make a picture of rows."""
        return self.conv(self.layers(rows).reshape(2, 256, 8, 8))


@pytest.fixture(scope="module")
def wide() -> Plan:
    """Look at wide layers."""
    return plan_of(Wide(), [(torch.randn(2, 16, 1024),)], "float")


@pytest.mark.parametrize(
    ("precision", "bits"), {"fp16": 16, "w8a8": 8, "w4a16": 5, "w4a8": 4.5, "fp8": 8, "fp4": 4.5}.items()
)
def test_an_engine_holds_its_weights_once_in_as_many_bits_as_asked_for(
    tmp_path: Path, wide: Plan, precision: str, bits: float
) -> None:
    _, engine = built(typed(wide, precision), precision, tmp_path, ("sm120",))
    weights = (3 * 1024**2 + 256 * 256 * 9) * bits / 8
    assert abs(engine["weights"] / weights - 1) < 0.15  # type: ignore[operator]
    assert engine["bytes"] < MORE[0] * weights + MORE[1]  # type: ignore[operator]


def test_the_library_knows_the_same_architectures() -> None:
    archs = find_backend("trt").archs
    assert set(architectures(find_library(RTX))) == set(archs["fp16"])
    assert list(archs) == list(PRECISIONS)


def test_a_target_names_architectures() -> None:
    assert parse_target("trt-w4a8@sm89,sm120") == Target("trt", "w4a8", ("sm89", "sm120"))


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "trt-fp8@sm86": "sm86 cannot compute fp8",
        "trt-fp4@sm89": "sm89 cannot compute fp4",
        "trt-fp16@sm90": "trt cannot build for sm90",
        "trt-w4a4": "no precision 'w4a4'",
        "ort-fp32@sm89": "ort builds for no GPU",
    }.items(),
)
def test_what_no_engine_can_be_built_for_is_refused_with_what_would_work(text: str, said: str) -> None:
    with pytest.raises(TargetError, match=said) as caught:
        parse_target(text)
    assert "trt-" in str(caught.value.fix)
    if "@" in text:
        works = [word.rstrip(",") for word in str(caught.value.fix).split() if word.startswith("trt-")]
        assert all(parse_target(each) for each in works)
