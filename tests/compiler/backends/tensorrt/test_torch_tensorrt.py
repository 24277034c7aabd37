"""Engines of what torch_tensorrt makes of exported programs, built without a GPU, and in a PyTorch without CUDA too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from diffc.compiler.backends.backend import Lowered, find_backend
from diffc.compiler.backends.target import Target, parse_target
from diffc.compiler.backends.tensorrt import build
from diffc.compiler.backends.tensorrt.build import Built
from diffc.compiler.errors import BackendError
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.ir.program import Graph, Value
from diffc.passes.mixed_precision import mixed_precision
from diffc.runtime import load
from diffc.runtime.errors import DiffcWarning
from tests.command_line import succeeded
from tests.compiler.backends.onnx.test_typed import transformer, unet
from tests.compiler.backends.tensorrt.test_backend import MORE, Wide
from tests.compiler.backends.tensorrt.torch_tensorrt_builder import PORTS
from tests.test_quantized_bundles import Source
from tests.tolerances import PICTURE
from tests.zoo import ZOO

ROOT = Path(__file__).parents[4]
PACKAGE = "torch-tensorrt-rtx"
GUARD = "import diffc.compiler.backends.tensorrt.torch_tensorrt"


def has_package() -> bool:
    """Say whether it is installed, in whichever PyTorch."""
    try:
        return bool(version(PACKAGE))
    except PackageNotFoundError:
        return False


needs_package = pytest.mark.skipif(
    not has_package(), reason=f"torch_tensorrt is not installed: pip install --no-deps {PACKAGE} dllist psutil"
)


@pytest.fixture(scope="module")
def torchtrt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the back end be imported, and its builder, in a PyTorch without CUDA."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(build, "BUILDER", "tests.compiler.backends.tensorrt.torch_tensorrt_builder")
        if torch.version.cuda is None:
            spec, copy = find_spec("torch_tensorrt"), tmp_path_factory.mktemp("python_only")
            assert spec and spec.origin
            shutil.copytree(Path(spec.origin).parent, copy / spec.name, ignore=shutil.ignore_patterns("lib", "*.so"))
            patch.setenv("PYTHONPATH", str(copy))
            patch.setattr(torch.version, "cuda", "13.0")
        find_backend("torchtrt")
        yield
    sys.modules.pop("diffc.compiler.backends.tensorrt.torch_tensorrt", None)


class UNet(nn.Module):
    """Give a UNet its text too: torch_tensorrt has no attention with keys that are constant."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = ZOO["StableDiffusionPipeline"]().pipeline.unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Denoise."""
        made: torch.Tensor = self.unet(sample, timestep, text, return_dict=False)[0]
        return made


SAMPLES = torch.randn(2, 4, 8, 8), torch.tensor([901.0, 901.0])
MODELS = {transformer: SAMPLES, UNet: (*SAMPLES, torch.randn(2, 16, 32))}


def captured(module: nn.Module, given: tuple[torch.Tensor, ...], precision: str) -> Graph:
    """Capture a module as the back end is given it."""
    body = export("net", module.eval().requires_grad_(False), given)
    inputs = tuple(Value(f"x{at}", type_of(x)) for at, x in enumerate(given))
    (made,) = (node.meta["val"] for node in body.graph.output_node().all_input_nodes)
    graph = Graph("net", inputs, (Value("y", type_of(made)),), body, "net")
    dtype = find_backend("torchtrt").computes.get(precision)
    return graph if dtype is None else mixed_precision(graph, dtype=getattr(torch, dtype))


def built(graph: Graph, precision: str, folder: Path, archs: tuple[str, ...] = ("sm86", "sm120")) -> Built:
    """Lower a graph and build its engine."""
    backend = find_backend("torchtrt")()
    files = backend.lower([graph], precision, folder, lambda _: None)
    (made,) = backend.engines(Lowered([graph], files, precision, archs, folder, lambda _: None)).values()
    assert isinstance(made, Built)
    assert (folder / made.file).stat().st_size == made.bytes
    return made


PRECISIONS = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
CASES = [
    pytest.param(make, precision, marks=() if (make, precision) == (transformer, "fp16") else pytest.mark.slow)
    for make in MODELS
    for precision in PRECISIONS
]
"""Each takes 20 s, most of them to import PyTorch anew; one is for every day."""


@needs_package
@pytest.mark.usefixtures("torchtrt")
@pytest.mark.parametrize(("make", "precision"), CASES)
def test_each_precision_builds_an_engine_of_the_ports_of_its_graph(
    tmp_path: Path, make: Callable[[], nn.Module], precision: str
) -> None:
    made = built(captured(make(), MODELS[make], precision), precision, tmp_path)
    assert made.archs == ("sm86", "sm120") and made.builder.startswith("tensorrt-rtx ")
    floats = {name: count for name, count in made.types.items() if not name.startswith("INT")}
    assert floats.pop(PRECISIONS[precision]) > 5 * sum(floats.values()), "what a timestep becomes, and norms"
    graph = onnx.load(tmp_path / "net.onnx", load_external_data=False).graph
    ports = [
        [[port.name, [dim.dim_value for dim in port.type.tensor_type.shape.dim], "FLOAT"] for port in side]
        for side in (graph.input, graph.output)
    ]
    assert json.loads((tmp_path / "engines" / PORTS).read_text()) == ports
    assert not list(tmp_path.rglob("*.pt2"))


@needs_package
@pytest.mark.usefixtures("torchtrt")
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bits"), {"fp32": 32, "fp16": 16, "bf16": 16}.items())
def test_an_engine_holds_its_weights_once_in_as_many_bits_as_asked_for(
    tmp_path: Path, precision: str, bits: int
) -> None:
    made = built(captured(Wide(), (torch.randn(2, 16, 1024),), precision), precision, tmp_path, ("sm120",))
    weights = (3 * 1024**2 + 256 * 256 * 9) * bits / 8
    assert abs(made.weights / weights - 1) < 0.01
    assert weights < made.bytes < MORE[0] * weights + MORE[1]


@needs_package
@pytest.mark.slow
@pytest.mark.usefixtures("torchtrt")
def test_what_is_not_converted_is_an_error_with_the_node(tmp_path: Path) -> None:
    graph = captured(unet(), SAMPLES, "fp32")  # the text is a constant, and so are the keys
    with pytest.raises(BackendError, match="no engine for net: ") as caught:
        built(graph, "fp32", tmp_path)
    assert caught.value.where.startswith("aten.scaled_dot_product_attention.default scaled_dot_product_attention_")
    assert "build for trt-fp16" in str(caught.value.fix)
    assert not list(tmp_path.rglob("*.engine"))


@needs_package
@pytest.mark.slow
@pytest.mark.usefixtures("torchtrt")
def test_a_bundle_draws_without_a_gpu_too_and_is_finalized_from_its_graphs(tmp_path: Path) -> None:
    source, bundle, other = Source("DDPMPipeline", tmp_path), tmp_path / "x.diffc", tmp_path / "y.diffc"
    succeeded("build", source.path, "--target", "torchtrt-fp32@sm89", *source.options, "-o", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(manifest["engines"]) == {name for name, graph in manifest["graphs"].items() if graph["component"]}
    assert len({engine["file"] for engine in manifest["engines"].values()}) == len(manifest["engines"])
    succeeded("build", source.path, *source.options, "-o", tmp_path / "float.diffc")
    with pytest.warns(DiffcWarning, match="ort-fp32"):
        picture = np.asarray(load(bundle)(seed=1, output="np"))
    wanted = np.asarray(load(tmp_path / "float.diffc")(seed=1, output="np"))
    assert np.abs(picture - wanted).max() < PICTURE
    succeeded("finalize", bundle, "--arch", "sm86", "-o", other)
    finalized = json.loads((other / "manifest.json").read_text())["engines"]
    assert {name: each["archs"] for name, each in finalized.items()} == dict.fromkeys(manifest["engines"], ["sm86"])


@needs_package
@pytest.mark.usefixtures("torchtrt")
def test_a_target_names_architectures() -> None:
    assert parse_target("torchtrt-fp16@sm89,sm120") == Target("torchtrt", "fp16", ("sm89", "sm120"))
    assert list(find_backend("torchtrt").precisions) == ["fp32", "fp16", "bf16"]


@pytest.mark.skipif(torch.version.cuda is not None and has_package(), reason="torch_tensorrt can be imported")
def test_where_it_cannot_be_imported_the_import_says_why() -> None:
    found = subprocess.run([sys.executable, "-c", GUARD], capture_output=True, text=True)
    assert f"{PACKAGE} needs PyTorch with CUDA" in found.stderr or "No package metadata" in found.stderr
