"""Quantized graphs in half precision: legal ONNX of one type of float, and the numbers of float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.utils import _pytree as pytree

from diffc.compiler.backends.onnx.export import Onnx
from diffc.compiler.errors import BackendError
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.ir.program import Graph, Value
from diffc.compiler.metrics import sqnr
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.passes.mixed_precision import mixed_precision
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.compiler.backends.onnx.test_quantized_ops import session
from tests.one_graph import Tensors, plan_of, run
from tests.tolerances import BFLOAT16_SQNR, FLOAT16_SQNR, HALF, HALF_LOSS, ROUNDED_SQNR
from tests.typed import computed, types_of
from tests.zoo import ZOO

HALVES = {torch.float16: FLOAT16_SQNR, torch.bfloat16: BFLOAT16_SQNR}

each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)

SCHEMES = (
    ("int8:channel", "int8:tensor"),
    ("int8:channel", "int8:token"),
    ("int8:channel", "int8:tensor:step"),
    ("int4:group=32", "float"),
    ("int4:group=32:scale=float16", "float"),
    ("int4:group=32", "int8:tensor"),
    ("e4m3:channel", "e4m3:tensor"),
    ("nvfp4", "nvfp4:dynamic"),
)


class Layers(nn.Module):
    """Have two linear layers and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(128, 160), nn.Linear(160, 32)
        self.conv = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Make a picture of rows."""
        hidden = self.second(nn.functional.silu(self.first(rows)))
        return self.conv(hidden.transpose(1, 2).unflatten(2, (3, 3)))


def quantized(weight: str, activation: str, branch: int = 0) -> tuple[Graph, Tensors]:
    """Quantize the layers, smoothed and with a low-rank branch where it has a rank, and give an input."""
    feeds: list[Tensors] = [(torch.randn(2, 9, 128) * step,) for step in (1, 2)]
    plan = plan_of(Layers(), feeds, "float")
    scheme = Scheme(parse_spec(weight), parse_spec(activation))
    plan = plan.mapped(lambda layer: replace(layer, scheme=Onnx.adapted(layer.kind, scheme)[0]))
    if branch:
        smoothing, down, up = torch.rand(128) + 0.5, torch.randn(branch, 128) / 9, torch.randn(160, branch) / 9
        first = plan.layers[0].name
        plan = plan.mapped(
            lambda layer: replace(layer, smoothing=smoothing, branch=(down, up)), lambda layer: layer.name == first
        )
    (program,) = applied(round_to_nearest(calibrate_ranges(plan, by="minmax")))
    return program.graphs[0], (*feeds[-1], *(torch.as_tensor(table.data)[-1:] for table in program.tables))


def lowered(graph: Graph, folder: Path) -> tuple[Path, onnx.ModelProto]:
    """Write a graph, and check it as strictly as ONNX can."""
    file = folder / Onnx().lower([graph], "w8a8", folder, lambda _: None)[graph.name]
    model = onnx.load(file, load_external_data=False)
    onnx.load_external_data_for_model(model, str(folder))
    onnx.checker.check_model(model, full_check=True)
    return file, model


def compared(graph: Graph, given: Tensors, dtype: torch.dtype, folder: Path) -> tuple[Path, float]:
    """Give the file of a graph in another type, and its ratio of signal to noise in ONNX's reference."""
    file, model = lowered(mixed_precision(graph, dtype=dtype), folder)
    with torch.no_grad():
        (wanted,) = pytree.tree_leaves(body_of(graph)(*given))
    feeds = {port.name: x.numpy() for port, x in zip(graph.inputs, given, strict=True)}
    (made,) = ReferenceEvaluator(model).run(None, feeds)  # type: ignore[arg-type]
    return file, sqnr(np.asarray(made), wanted.numpy())


@each_half
@pytest.mark.parametrize(("weight", "activation"), SCHEMES)
def test_a_quantized_graph_has_one_type_of_float(
    tmp_path: Path, weight: str, activation: str, dtype: torch.dtype
) -> None:
    file, found = compared(*quantized(weight, activation), dtype, tmp_path)
    wide = {kind: count for (type_, kind), count in computed(file).items() if type_ == "FLOAT"}
    selections = wide.pop("Where", 0)
    assert wide == {"Cast": 1 + 2 * selections}
    assert selections == 0 or dtype == torch.bfloat16, "for which ONNX Runtime has no selection"
    assert found > ROUNDED_SQNR.get(activation.partition(":")[0], HALVES[dtype])


@each_half
def test_scales_and_smoothing_and_branches_are_stored_in_it(tmp_path: Path, dtype: torch.dtype) -> None:
    graph, given = quantized("int4:group=32:scale=float16", "float", branch=4)
    file, found = compared(graph, given, dtype, tmp_path)
    assert found > HALVES[dtype]
    model = onnx.load(file, load_external_data=False).graph
    types = types_of(file)
    assert sum(node.op_type == "Cast" for node in model.node) == 2, "of the ports"
    assert onnx.TensorProto.FLOAT not in {types[tensor.name] for tensor in model.initializer}


class Mixing(nn.Module):
    """Have a large weight, which one number may make a weight that float16 has not."""

    def __init__(self, largest: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(128, 128)
        self.linear.weight.data[3, 4] = largest

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Mix."""
        return self.linear(rows[None])


def layer(largest: float = 1.0) -> Graph:
    """Capture one."""
    rows = torch.zeros(2, 128)
    body = export("net", Mixing(largest).requires_grad_(False), [rows])
    return Graph("net", (Value("rows", type_of(rows)),), (Value("y", type_of(rows)),), body, "net")


@each_half
def test_a_weight_is_stored_in_it_by_a_model_that_is_new_and_by_one_that_is_taken_over(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    for name in ("new", "again"):
        folder = tmp_path / name
        folder.mkdir()
        _, model = lowered(mixed_precision(layer(), dtype=dtype), folder)
        (stored,) = (tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
        weight = np.asarray(onnx.numpy_helper.to_array(stored), np.float32)
        wanted = Mixing().linear.weight.detach().numpy().T
        assert np.abs(weight - wanted).max() <= (8 * HALF if dtype == torch.bfloat16 else HALF)
        assert (folder / "weights" / "net.bin").stat().st_size < 1.05 * 2 * weight.size
        assert [node.op_type for node in model.graph.node].count("Cast") == 2, "of the ports"


def test_a_weight_that_would_be_infinite_is_read_in_float32(tmp_path: Path) -> None:
    rows = torch.randn(2, 128)
    graph = layer(99999.0)
    file, found = compared(graph, (rows,), torch.float16, tmp_path)
    assert found > FLOAT16_SQNR and ("FLOAT", "MatMul") in computed(file)


def test_one_of_which_nobody_knew_is_refused(tmp_path: Path) -> None:
    given = layer(1.0)
    made = mixed_precision(given, dtype=torch.float16)
    for weight in made.body.state_dict.values():
        weight.view(-1)[7] = 99999.0
    with pytest.raises(BackendError, match="infinite in float16"):
        Onnx().lower([made], "fp32", tmp_path, lambda _: None)


class Denoiser(nn.Module):
    """Call a tiny UNet or transformer of diffusers with tensors only."""

    def __init__(self, name: str, component: str, **constants: torch.Tensor) -> None:
        super().__init__()
        self.denoiser, self.constants = ZOO[name]().pipeline.components[component], constants

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Denoise."""
        return self.denoiser(sample, timestep, **self.constants, return_dict=False)[0]


def unet() -> Denoiser:
    """Make a UNet with attention."""
    text = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    return Denoiser("StableDiffusionPipeline", "unet", encoder_hidden_states=text)


def transformer() -> Denoiser:
    """Make a transformer."""
    return Denoiser("DiTPipeline", "transformer", class_labels=torch.tensor([1, 2]))


PRECISIONS = {
    "fp16": ("float", "float"),
    "w8a8": ("int8:channel", "int8:tensor"),
    "w4a16": ("int4:group=16", "float"),
    "w4a8": ("int4:group=16", "int8:tensor"),
}


def scheme_of(layer: Layer, precision: str) -> Scheme:
    """Let layers be as the portable back end has them, and attention and tables in float."""
    if layer.kind not in ("linear", "conv"):
        return Scheme()
    return Onnx.adapted(layer.kind, Scheme(*map(parse_spec, PRECISIONS[precision])))[0]


@cache
def in_float(make: Callable[[], Denoiser]) -> tuple[Plan, Tensors]:
    """Capture a denoiser once for all precisions, and return its plan and the values of the first step."""
    random = torch.Generator().manual_seed(0)
    feeds = [(torch.randn(2, 4, 8, 8, generator=random), torch.tensor([t, t])) for t in (901.0, 401.0)]
    return plan_of(make(), feeds, "float"), feeds[0]


@pytest.mark.parametrize(
    ("make", "precision"),
    [(unet, "fp16"), (unet, "w8a8"), (unet, "w4a8"), (transformer, "fp16"), (transformer, "w4a16")],
)
def test_a_denoiser_in_float16_loses_nothing_to_speak_of(
    tmp_path: Path, make: Callable[[], Denoiser], precision: str
) -> None:
    plan, feeds = in_float(make)
    floats = plan.programs
    plan = plan.mapped(lambda layer: replace(layer, scheme=scheme_of(layer, precision)))
    (program,) = applied(round_to_nearest(calibrate_ranges(plan, by="minmax"))) if precision != "fp16" else floats
    (graph,) = program.graphs
    file, _ = lowered(mixed_precision(graph, dtype=torch.float16), tmp_path)
    ports = {port.name: x.numpy() for port, x in zip(graph.inputs, feeds, strict=True)}
    (made,) = session(file, tmp_path).run(None, ports)
    wanted, quantized = (run(each, [feeds])[0].detach().numpy() for each in (floats, [program]))
    assert sqnr(made, wanted) > min(FLOAT16_SQNR, sqnr(quantized, wanted) - HALF_LOSS)
    wide = {kind for type_, kind in computed(file) if type_ == "FLOAT"}
    assert wide == {"Unsqueeze", "Mul", "Sin", "Cos", "Cast"}, "what the timestep becomes, and ports"
