"""What became of a graph is taken over by other weights, and by nothing else that differs."""

from __future__ import annotations

from pathlib import Path

import onnx_ir
import pytest
import torch
from torch import nn

from diffc.compiler.backends.onnx import export as backend
from diffc.compiler.backends.onnx import quantized_ops
from diffc.compiler.backends.onnx.export_cache import StoredTensors, exported
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.ir.program import Graph, Value
from diffc.runtime.disk_cache import Cache

WIDTH = 128  # squared, more than what counts as small


class Layer(nn.Module):
    """Hold a large weight, a small one and a constant."""

    def __init__(self, seed: int = 0, factor: float = 2.0, offset: float = 0.5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator))
        self.register_buffer("offset", torch.full((3,), offset))
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix."""
        return nn.functional.linear(x * self.factor, self.weight) + self.offset.sum()


class Folding(Layer):
    """Compute with a large weight alone, which the exporter may do at once."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix."""
        return x + self.weight[:1] * 2


def graph(module: nn.Module, rows: int = 1) -> Graph:
    """Capture a module."""
    example = torch.zeros(rows, WIDTH)
    return Graph(
        "layer", (Value("x", type_of(example)),), (Value("out", type_of(example)),), export("l", module, [example])
    )


class Counted:
    """Export, and count how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, graph: Graph, tensors: StoredTensors) -> onnx_ir.Model:
        self.times += 1
        return backend._export(graph, tensors)


@pytest.fixture
def count() -> Counted:
    """Count the exports of the back end."""
    return Counted()


def numbers(model: onnx_ir.Model) -> dict[str, list[float]]:
    """List the initializers' numbers."""
    values = model.graph.initializers.items()
    return {name: v.const_value.numpy().reshape(-1)[:8].tolist() for name, v in values if v.const_value is not None}


def test_other_weights_take_over_a_model(tmp_path: Path, count: Counted) -> None:
    cache = Cache(tmp_path)
    first = exported(graph(Layer(seed=0)), count, cache, by=[Path(__file__)])
    second = exported(graph(Layer(seed=1)), count, cache, by=[Path(__file__)])
    assert count.times == 1
    fresh = exported(graph(Layer(seed=1)), count, Cache(tmp_path / "other"), by=[Path(__file__)])
    assert numbers(second) == numbers(fresh) != numbers(first)


@pytest.mark.parametrize(
    ("module", "rows"),
    [(Layer(factor=3.0), 1), (Layer(offset=0.25), 1), (Layer(), 2)],
    ids=["factor", "small", "shape"],
)
def test_another_graph_is_another_model(tmp_path: Path, count: Counted, module: nn.Module, rows: int) -> None:
    cache = Cache(tmp_path)
    exported(graph(Layer()), count, cache, by=[Path(__file__)])
    got = exported(graph(module, rows), count, cache, by=[Path(__file__)])
    assert count.times == 2
    assert numbers(got) == numbers(exported(graph(module, rows), count, Cache(tmp_path / "other"), by=[Path(__file__)]))


def test_a_model_that_holds_what_was_made_of_a_weight_is_not_kept(tmp_path: Path, count: Counted) -> None:
    cache = Cache(tmp_path)
    for seed in (0, 1):
        got = exported(graph(Folding(seed=seed)), count, cache, by=[Path(__file__)])
        fresh = exported(graph(Folding(seed=seed)), count, Cache(tmp_path / "other", limit=0), by=[Path(__file__)])
        assert numbers(got) == numbers(fresh)


def test_an_entry_that_makes_no_sense_is_not_believed(tmp_path: Path, count: Counted) -> None:
    cache = Cache(tmp_path)
    exported(graph(Layer()), count, cache, by=[Path(__file__)])
    [(path, _)] = cache.entries()
    cache.put(path.name.removesuffix(".entry"), b"no model")
    got = exported(graph(Layer()), count, cache, by=[Path(__file__)])
    assert count.times == 2
    assert numbers(got) == numbers(exported(graph(Layer()), count, Cache(tmp_path / "other"), by=[Path(__file__)]))


def test_other_code_of_quantized_operators_is_another_model(tmp_path: Path, count: Counted) -> None:
    cache, source = Cache(tmp_path / "cache"), Path(quantized_ops.__file__)
    code = backend.code(graph(Layer()))
    assert {source, Path(backend.__file__)} <= set(code)
    changed = tmp_path / source.name
    changed.write_text(source.read_text() + "# changed\n")
    others = [file for file in code if file != source]
    for by in ([*others, source], [*others, source], [*others, changed]):
        exported(graph(Layer()), count, cache, by=by)
    assert count.times == 2
