"""Quantized graphs in every dialect: engines compute what PyTorch simulates, and in as few bits as promised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import nn

from diffc.compiler.backends.backend import Backend, find_backend
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.lazy_weights import materialize
from diffc.compiler.ir.program import Value
from diffc.compiler.metrics import sqnr
from diffc.compiler.quantization.apply_plan import SCALES, applied
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.runtime.engines.cpu import multiplies_bytes
from diffc.runtime.engines.openvino import openvino_core, openvino_version
from diffc.runtime.engines.ort import IN_FLOAT
from tests.one_graph import Tensors, plan_of
from tests.tolerances import ENGINE_SQNR, OPENVINO_SQNR

Array = NDArray[np.float32]

BACKENDS = ("onnx", "ort", *(["ov"] if openvino_version() else []))

SCHEMES = (
    ("int8:channel", "float"),
    ("int4:group=32", "float"),
    ("uint4:group=32", "float"),
    ("uint4:group=32:scale=uint4", "float"),
    ("int8:group=32:scale=uint4", "float"),
    ("mxfp4", "float"),
    ("int8:channel", "uint8:tensor"),
    ("int8:channel", "int8:token"),
    ("int8:channel", "int8:tensor:step"),
    ("int4:channel", "int8:token"),
    ("int4:group=64:scale=uint4", "int8:token"),
    ("int4:group=64:scale=uint4", "uint8:tensor"),
    ("int4:group=32", "int4:group=32:dynamic"),
    ("int4:group=32", "uint4:tensor"),
    ("int8:group=32", "int8:group=32:dynamic"),
    ("nvfp4", "nvfp4:dynamic"),
    ("nvfp4", "int8:token"),
    ("e4m3:channel", "e4m3:tensor"),
    ("e4m3:channel", "e4m3:token"),
)


class Layers(nn.Module):
    """Have a linear layer of 128 channels and a convolution of windows of 576 for each scheme."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.ModuleList(nn.Linear(128, 48) for _ in SCHEMES)
        self.conv = nn.ModuleList(nn.Conv2d(64, 48, 3, padding=1) for _ in SCHEMES)

    def forward(self, rows: torch.Tensor, picture: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Apply each to the same."""
        return (*(layer(rows) for layer in self.linear), *(layer(picture) for layer in self.conv))


@dataclass(frozen=True)
class Made:
    """Hold what became of all layers: their schemes, files, what the engine computed and what is simulated."""

    backend: str
    schemes: Mapping[str, Scheme]
    folder: Path
    file: Path
    found: Mapping[str, Array]
    wanted: Mapping[str, Array]


def name_of(kind: str, at: int) -> str:
    """Name a layer."""
    return f"{kind}.{at}"


NAMES = [name_of(kind, at) for kind in ("linear", "conv") for at in range(len(SCHEMES))]


def planned(backend: type[Backend]) -> tuple[Plan, list[Tensors]]:
    """Give each layer its scheme as a back end computes it."""
    feeds: list[Tensors] = [(torch.randn(1, 9, 128) * step, torch.randn(1, 64, 4, 4) * step) for step in (1, 2)]
    plan = plan_of(Layers(), feeds, "float")
    (program,) = plan.programs
    outputs = tuple(Value(name.replace(".", "_")) for name in NAMES)
    program = replace(program, graphs=(replace(program.graphs[0], outputs=outputs),))

    def scheme(layer: Layer) -> Scheme:
        kind, at = layer.name.removeprefix("net.").split(".")
        return backend.adapted(kind, Scheme(*map(parse_spec, SCHEMES[int(at)])))[0]

    plan = Plan.of((program,), plan.calibration, scheme)
    return round_to_nearest(calibrate_ranges(plan, by="minmax")), feeds


@pytest.fixture(scope="module", params=BACKENDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Lower all layers with a back end, and run its engine."""
    backend, folder = find_backend(request.param), tmp_path_factory.mktemp(request.param)
    plan, feeds = planned(backend)
    (program,) = applied(plan)
    (graph,), (table,) = program.graphs, program.tables
    file = folder / backend().lower([graph], "w8a8", folder, lambda _: None)[graph.name]
    module = body_of(graph)
    materialize(module)
    given = (*feeds[-1], torch.as_tensor(table.data)[-1:])
    wanted = [output.numpy() for output in module(*given)]
    ports = [port.name for port in graph.inputs]
    assert ports == ["x0", "x1", SCALES]
    found = computed(request.param, file, folder, {name: x.numpy() for name, x in zip(ports, given, strict=True)})
    schemes = {layer.name.removeprefix("net."): layer.scheme for layer in plan.layers}
    return Made(
        request.param,
        schemes,
        folder,
        file,
        dict(zip(NAMES, found, strict=True)),
        dict(zip(NAMES, wanted, strict=True)),
    )


def computed(backend: str, file: Path, folder: Path, feeds: dict[str, Array]) -> list[Array]:
    """Run a graph with the back end's engine; for the portable one, with ONNX's reference."""
    if backend == "ov":
        core = openvino_core()
        options = {"INFERENCE_PRECISION_HINT": "f32"} | ({} if multiplies_bytes() else {"LP_TRANSFORMS_MODE": "NO"})
        compiled = core.compile_model(core.read_model(file), "CPU", options)
        made = compiled(feeds)
        return [np.asarray(made[at]) for at in range(len(compiled.outputs))]
    if backend == "onnx":
        model = onnx.load(file, load_external_data=False)
        onnx.load_external_data_for_model(model, str(folder))
        return list(ReferenceEvaluator(model).run(None, feeds))  # type: ignore[arg-type]
    return list(session(file, folder).run(None, feeds))


def session(file: Path, folder: Path, optimised: Path | None = None) -> onnxruntime.InferenceSession:
    """Open a graph as the runtime does."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if optimised is not None:  # which kernels there are is the same on every CPU
        options.optimized_model_filepath = str(optimised)
    else:
        options.add_session_config_entry(IN_FLOAT, "0" if multiplies_bytes() else "1")
    return onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])


def computes_otherwise(made: Made, name: str) -> bool:
    """Say whether OpenVINO rounds to other numbers: it quantizes inputs by itself, and rounds e4m3 in two steps."""
    scheme = made.schemes[name]
    integers = scheme.activation is not None and str(scheme.activation).startswith(("int8", "uint8"))
    e4m3 = scheme.activation is not None and scheme.activation.format.name == "e4m3"
    return made.backend == "ov" and (e4m3 or (name.startswith("linear") and not integers))


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_computes_what_is_simulated(made: Made, name: str) -> None:
    floor = OPENVINO_SQNR if computes_otherwise(made, name) else ENGINE_SQNR
    assert sqnr(made.found[name], made.wanted[name]) > floor


def test_codes_are_stored_in_their_bits(made: Made) -> None:
    stored = Counter[int]()
    for tensor in onnx.load(made.file, load_external_data=False).graph.initializer:
        stored.update(int(entry.value) for entry in tensor.external_data if entry.key == "length")
    sizes = {"linear": 128 * 48, "conv": 576 * 48}
    wanted = Counter[int]()
    for name, scheme in made.schemes.items():
        assert scheme.weight is not None
        wanted.update([sizes[name.partition(".")[0]] * scheme.weight.format.bits // 8])
    assert {size: stored[size] for size in wanted} == wanted
    rest = sum(size * count for size, count in stored.items() if size not in wanted)
    assert rest < 0.15 * sum(size * count for size, count in wanted.items()), "scales, zero points and biases"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Mapping[str, frozenset[str]]:
    """Give what ONNX Runtime computes each output with, after its optimisations."""
    optimised = tmp_path_factory.mktemp("optimised") / "net.onnx"
    session(made.file, made.folder, optimised)
    graph = onnx.load(optimised, load_external_data=False).graph
    makers = {output: node for node in graph.node for output in node.output}
    found = {}
    for name, output in zip(NAMES, graph.output, strict=True):
        met, pending = set[str](), [output.name]
        while pending:
            if (node := makers.get(pending.pop())) is not None:
                met.add(node.op_type)
                pending += node.input
        found[name] = frozenset(met)
    return found


PRODUCTS = {"MatMulIntegerToFloat", "MatMulNBits", "MatMul", "FusedMatMul", "QLinearConv", "Conv"}


@pytest.mark.parametrize("made", ["ort"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "weight", "activation", "kernel"),
    [
        ("linear", "int8:channel", "float", "MatMulNBits"),
        ("linear", "int4:group=32", "float", "MatMulNBits"),
        ("linear", "int4:group=32", "int4:group=32:dynamic", "MatMulNBits"),
        ("linear", "int8:group=32", "int8:group=32:dynamic", "MatMulNBits"),
        ("linear", "int8:channel", "uint8:tensor", "MatMulIntegerToFloat"),
        ("linear", "int8:channel", "int8:token", "MatMulIntegerToFloat"),
        ("linear", "int8:channel", "int8:tensor:step", "MatMulIntegerToFloat"),
        ("linear", "int4:channel", "int8:token", "MatMulIntegerToFloat"),
        ("linear", "int4:group=64:scale=uint4", "int8:token", "MatMulIntegerToFloat"),
        ("linear", "int4:group=64:scale=uint4", "uint8:tensor", "MatMulIntegerToFloat"),
        ("conv", "int8:channel", "uint8:tensor", "QLinearConv"),
        ("conv", "int4:group=64:scale=uint4", "uint8:tensor", "QLinearConv"),
        ("conv", "int4:group=32", "float", "Conv"),
    ],
)
def test_onnx_runtime_computes_in_few_bits(
    kernels: Mapping[str, frozenset[str]], kind: str, weight: str, activation: str, kernel: str
) -> None:
    found = kernels[f"{kind}.{SCHEMES.index((weight, activation))}"]
    assert found & PRODUCTS == {kernel}
    if kernel in ("MatMulIntegerToFloat", "MatMulNBits"):
        assert "DequantizeLinear" not in found


class Attends(nn.Module):
    """Attend once for each of `PRODUCTS_OF_ATTENTION`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Attend."""
        attend = nn.functional.scaled_dot_product_attention
        return tuple(attend(q, k, v) * self.weight for _ in PRODUCTS_OF_ATTENTION)


PRODUCTS_OF_ATTENTION = (("int8:tensor", "float", "float"), ("float", "uint8:tensor", "uint8:tensor"))
"""What queries and keys, what probabilities, and what values are."""


@pytest.mark.parametrize("name", BACKENDS)
def test_both_products_of_attention_are_computed_as_simulated(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    feeds: list[Tensors] = [tuple(torch.randn(1, 2, 16, 32) for _ in range(3))]
    backend, plan = find_backend(name), plan_of(Attends(), feeds, "float")
    kinds = [dict(zip(("activation", "probabilities", "values"), each, strict=True)) for each in PRODUCTS_OF_ATTENTION]
    schemes = [Scheme(**{kind: parse_spec(text) for kind, text in each.items()}) for each in kinds]
    adapted = [backend.adapted("attention", scheme)[0] for scheme in schemes]
    plan = replace(plan, layers=tuple(replace(x, scheme=s) for x, s in zip(plan.layers, adapted, strict=True)))
    (program,) = plan.programs
    graph = replace(program.graphs[0], outputs=tuple(Value(f"y{at}") for at in range(len(schemes))))
    plan = replace(plan, programs=(replace(program, graphs=(graph,)),))
    (graph,) = applied(calibrate_ranges(plan, by="minmax"))[0].graphs
    file = tmp_path / backend().lower([graph], "w8a8", tmp_path, lambda _: None)[graph.name]
    module = body_of(graph)
    materialize(module)
    found = computed(name, file, tmp_path, {f"x{at}": x.numpy() for at, x in enumerate(feeds[0])})
    for made, wanted in zip(found, module(*feeds[0]), strict=True):
        assert sqnr(made, wanted.numpy()) > ENGINE_SQNR
    kinds_of_nodes = Counter(node.op_type for node in onnx.load(file, load_external_data=False).graph.node)
    assert kinds_of_nodes["Attention"] == 1, "one is left whole for engines that fuse it"
    assert kinds_of_nodes["Softmax"] == 1 and kinds_of_nodes["QuantizeLinear"] == 4
