"""Partitions that are run in their order compute what the module does, with its feature or with another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.analysis.features import Feature, ReusePattern
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.partition import Partitions
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.export import export
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program
from tests.tolerances import REWRITE_SINGLE

ALL: ReusePattern = frozenset()
DEEP: ReusePattern = frozenset({Feature("tanh")})

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


class Denoiser(nn.Module):
    """Have a deep part, the only ``tanh``, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.deep, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, deep: torch.Tensor | None = None) -> tuple[torch.Tensor]:
        """Compute everything, or take the value of the deep part over."""
        h = self.into(x)
        return (self.out(h + (torch.tanh(self.deep(h)) if deep is None else deep)),)


DENOISER = Denoiser().requires_grad_(False)


@pytest.fixture(scope="module")
def program() -> Program:
    program = parse(
        "program main() { graph unet(x: float32[2, 3]) -> (y: float32[2, 3])"
        "n: float32[2, 3] = noise() m: float32[2, 3] = unet(x=n) return m }"
    )
    return replace(program, graphs=(replace(program.graphs[0], body=export("unet", DENOISER, (X,))),))


def run(partitions: Partitions, pattern: ReusePattern, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run the partitions of a reuse pattern, and return the values by the names of ports."""
    values = dict(values)
    for partition in partitions.partitions:
        if pattern in partition.patterns:
            outputs = body_of(partition.graph)(*(values[port.name] for port in partition.graph.inputs))
            values |= {port.name: value for port, value in zip(partition.graph.outputs, outputs, strict=True)}
    return values


def test_partitions_together_compute_what_the_module_does(program: Program) -> None:
    partitions = Partitions(program.graphs[0], [program], [ALL, DEEP])
    assert [partition.patterns for partition in partitions.partitions] == [{ALL, DEEP}, {ALL}, {ALL, DEEP}]
    torch.testing.assert_close(run(partitions, ALL, {"x": X})["y"], DENOISER(X)[0], rtol=0, atol=REWRITE_SINGLE)


def test_a_call_that_reuses_a_feature_runs_the_others_with_it(program: Program) -> None:
    partitions = Partitions(program.graphs[0], [program], [ALL, DEEP])
    earlier = torch.full((2, 3), 0.25)
    found = run(partitions, DEEP, {"x": X, "tanh": earlier})["y"]
    torch.testing.assert_close(found, DENOISER(X, earlier)[0], rtol=0, atol=REWRITE_SINGLE)


def test_each_weight_is_in_one_partition(program: Program) -> None:
    partitions = Partitions(program.graphs[0], [program], [ALL, DEEP]).partitions
    assert [len(partition.graph.body.state_dict) for partition in partitions] == [2, 2, 2]


@pytest.mark.parametrize(
    ("feature", "what"),
    [
        (Feature("nothing"), "^nothing is no feature that can be kept"),
        (Feature("x"), "^x is no feature that can be kept"),
        (Feature("tanh", "linear_2"), "^tanh is not computed from linear_2"),
    ],
)
def test_other_features_are_refused(program: Program, feature: Feature, what: str) -> None:
    with pytest.raises(PassError, match=what):
        Partitions(program.graphs[0], [program], [ALL, frozenset({feature})])
