"""Values that float16 does not hold are found, by their layers, and computed in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from diffc.compiler.backends.onnx.export import Onnx
from diffc.compiler.calibration.float16_overflow import overflowing, with_readers
from diffc.compiler.driver.half_precision import half_precision
from diffc.compiler.graph.body import body_of
from diffc.compiler.ir.program import Graph, Program
from diffc.compiler.metrics import sqnr
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.plan import Plan
from diffc.passes.mixed_precision import mixed_precision
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, plan_of, run
from tests.tolerances import FLOAT16_SQNR, ROUNDED_SQNR
from tests.typed import computed


class Decoder(nn.Module):
    """Decode as the autoencoder of SDXL does: what runs through the blocks grows to 1e5, and a norm makes it small."""

    def __init__(self, size: float = 1e5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(4, 16, 3, padding=1)
        self.block = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.conv_out = nn.Conv2d(16, 3, 3, padding=1)
        self.block.weight.data *= size

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode."""
        hidden = self.conv_in(latents)
        hidden = nn.functional.silu(self.norm(hidden + self.block(hidden)))
        return self.conv_out(hidden)


def latents(count: int = 3) -> list[Tensors]:
    """Sample latents, of which the last are the largest."""
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(1, 4, 8, 8, generator=random) * (1 + at),) for at in range(count)]


def planned(size: float = 1e5, weight: str = "float", activation: str = "float") -> Plan:
    """Plan the decoder with samples."""
    return plan_of(Decoder(size), latents(), weight, activation)


def typed(graph: Graph, program: Program, wide: frozenset[str] = frozenset()) -> list[torch.Tensor]:
    """Compute a graph in float16, as PyTorch does on the latents."""
    return run([replace(program, graphs=(mixed_precision(graph, dtype=torch.float16, wide=wide),))], latents())


def test_a_decoder_that_is_black_in_float16_draws_in_what_was_found() -> None:
    plan = planned()
    (program,), (graph,) = plan.programs, plan.programs[0].graphs
    wanted = run([program], latents())
    assert not torch.cat(typed(graph, program)).isfinite().all(), "nothing was planted"
    found = overflowing(plan.calibration, program, graph)
    assert {each.layer for each in found} == {"block"} and max(each.largest for each in found) > 65504
    made = typed(graph, program, with_readers(graph, found))
    assert sqnr(torch.cat(made).numpy(), torch.cat(wanted).numpy()) > FLOAT16_SQNR


def test_only_what_meets_the_large_values_is_in_float32(tmp_path: Path) -> None:
    plan = planned()
    (made,), report = half_precision(plan.programs, lambda _: plan.calibration, torch.float16, lambda _: None)
    file = tmp_path / Onnx().lower(made.graphs, "fp32", tmp_path, lambda _: None)["net"]
    kinds = computed(file)
    assert (kinds["FLOAT", "Conv"], kinds["FLOAT16", "Conv"]) == (1, 2)
    assert (kinds["FLOAT", "LayerNormalization"], kinds["FLOAT16", "LayerNormalization"]) == (1, 0)
    assert report["dtype"] == "float16" and report["limit"] == 32752
    (row,) = report["wide"]
    assert (row["graph"], row["layer"]) == ("net", "block") and row["largest"] > 65504


@pytest.mark.parametrize(("size", "kept"), [(1.0, False), (1e5, True), (1e4, True)])
def test_half_of_the_range_is_the_limit(size: float, kept: bool) -> None:
    plan = planned(size)
    (program,), (graph,) = plan.programs, plan.programs[0].graphs
    hidden = [Decoder(size).block(Decoder(size).conv_in(x)).abs().max() for (x,) in latents()]
    assert (max(hidden) > 32752) == kept
    assert bool(overflowing(plan.calibration, program, graph)) == kept


def test_a_quantized_graph_is_looked_at_with_the_scales_of_each_step() -> None:
    plan = planned(1e5, "int8:channel", "int8:tensor:step")
    (program,) = applied(round_to_nearest(calibrate_ranges(plan, by="minmax")))
    (made,), report = half_precision([program], lambda _: plan.calibration, torch.float16, lambda _: None)
    assert {row["layer"] for row in report["wide"]} == {"block"}
    (table,) = program.tables
    rows = [torch.as_tensor(row)[None] for row in table.data]  # type: ignore[union-attr]
    with torch.no_grad():
        found, wanted = (
            torch.cat([body_of(each.graphs[0])(x, row)[0] for (x,), row in zip(latents(), rows, strict=True)])
            for each in (made, program)
        )
    assert sqnr(found.numpy(), wanted.numpy()) > ROUNDED_SQNR["int8"]


def test_a_weight_that_is_too_large_is_found_and_a_mask_is_not() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(8, 8)
            self.linear.weight.data[0, 0] = 70000.0
            self.register_buffer("mask", torch.full((8, 8), torch.finfo(torch.float32).min).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.linear(x * 1e-4) + self.mask + torch.full((8, 8), -1e38).triu(1), -1)

    plan = plan_of(Masked(), [(torch.rand(8, 8),)], "float")
    (program,), (graph,) = plan.programs, plan.programs[0].graphs
    found = overflowing(plan.calibration, program, graph)
    assert [(each.layer, each.largest) for each in found] == [("linear", 70000.0)]
    made, _ = half_precision([program], lambda _: plan.calibration, torch.float16, lambda _: None)
    feeds = [(torch.rand(8, 8),)]
    assert sqnr(run(made, feeds)[0].numpy(), run([program], feeds)[0].numpy()) > FLOAT16_SQNR


def test_bfloat16_has_the_range_of_float32() -> None:
    plan = planned()
    made, report = half_precision(plan.programs, None, torch.bfloat16, lambda _: None)
    assert report == {"dtype": "bfloat16", "limit": 32752.0, "wide": []}
    assert torch.cat(run(made, latents())).isfinite().all()
