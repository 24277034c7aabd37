"""Every back end lowers the attention of both example models' kinds, with and without guidance."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

import diffusers
import pytest
import torch

from diffc.compiler.backends.backend import GROUP, Backend, Lowered, find_backend
from diffc.compiler.errors import TargetError
from diffc.compiler.graph.body import size
from diffc.compiler.ir.program import Graph, Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Tensor
from diffc.compiler.tracing.trace import trace
from tests.traced import staged

BACKENDS = sorted(point.name for point in entry_points(group=GROUP))

TEXT = Tensor((1, 16, 32))


def cross() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """Build a UNet, whose attention reads the text."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    return unet, {"encoder_hidden_states": TEXT}


def joint() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """Build a transformer, whose attention is over image and text, with normalized keys."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return transformer, {"encoder_hidden_states": TEXT, "pooled_projections": Tensor((1, 16))}


@pytest.fixture(scope="module", params=[cross, joint])
def graphs(request: pytest.FixtureRequest) -> Mapping[str, Graph]:
    """Stage a denoiser's graph for two batches, as a request with guidance and one without call it."""
    denoiser, inputs = request.param()
    calls = ComponentCalls()

    def traced(batch: int) -> Program:
        def sample(**conditions: torch.Tensor) -> torch.Tensor:
            x = torch.randn(1, 4, 8, 8)
            for step in (900.0, 400.0):
                repeated = {name: torch.cat([value] * batch) for name, value in conditions.items()}
                noise = denoiser(torch.cat([x] * batch), timestep=torch.tensor([step]), **repeated, return_dict=False)
                x = x - noise[0][:1]
            return x

        return trace(sample, {"denoiser": denoiser}, inputs, calls=calls, name=f"batch_{batch}")

    programs = staged(calls.graphs([traced(2), traced(1)]))
    found = {graph.name: graph for program in programs for graph in program.graphs}
    return {name: graph for name, graph in found.items() if size(graph) and not graph.stage}


def lowered(name: str, graphs: Mapping[str, Graph], folder: Path) -> tuple[Backend, dict[str, str]]:
    """Lower the graphs with a back end, unless what it needs is not installed."""
    try:
        backend = find_backend(name)()
    except TargetError as error:
        pytest.skip(error.what)
    return backend, backend.lower(list(graphs.values()), "fp32", folder, lambda _: None)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_back_end_lowers_attention(name: str, graphs: Mapping[str, Graph], tmp_path: Path) -> None:
    backend, files = lowered(name, graphs, tmp_path)
    assert set(files) == set(graphs) and len(graphs) == 2
    archs = backend.archs.get("fp32", ())[:1]
    engines = backend.engines(Lowered(list(graphs.values()), files, "fp32", archs, tmp_path, lambda _: None))
    assert len({engine.file for engine in engines.values()}) <= 1, "one engine serves both batches"
    assert set(engines) == (set(graphs) if backend.archs else set())
