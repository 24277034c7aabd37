"""Which graphs may be computed in bytes where two products are summed in 16 bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.ir.program import Graph
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.int8_saturation import LARGEST, has_reduced_range
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, plan_of

FLOAT = Scheme()


class Attention(nn.Module):
    """Let tokens attend to each other, by an operator or by two products."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(32, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v)


def drawn(*shape: int) -> list[Tensors]:
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(*shape, generator=random),) for _ in range(2)]


def made(module: nn.Module, given: list[Tensors], weight: str, activation: str, attention: Scheme = FLOAT) -> Graph:
    plan = plan_of(module, given, weight, activation)
    plan = plan.mapped(lambda layer: replace(layer, scheme=attention), lambda layer: layer.kind == "attention")
    (program,) = applied(round_to_nearest(calibrate_ranges(plan)))
    return program.graphs[0]


def test_two_products_with_the_largest_code_fit_into_sixteen_bits_and_with_the_next_they_do_not() -> None:
    for first in (-LARGEST, LARGEST):
        assert -(2**15) <= 2 * 255 * first < 2**15
    assert not 2 * 255 * (LARGEST + 1) < 2**15


@pytest.mark.parametrize(
    ("weight", "activation", "fits"),
    [
        ("int7:channel", "uint8:tensor", True),
        ("int7:channel:scale=float16", "int8:tensor", True),
        ("int4:channel", "uint8:tensor", True),
        ("int8:channel", "uint8:tensor", False),
        ("int8:channel", "uint4:tensor", False),
        ("uint7:channel", "uint8:tensor", False),
        ("int8:channel", "float", True),
        ("int8:channel", "e4m3:tensor", True),
        ("e4m3:channel", "uint8:tensor", True),
        ("int4:group=16:scale=uint4", "uint8:tensor", False),
        ("int2:group=16:scale=uint4", "uint8:tensor", True),
    ],
)
@pytest.mark.parametrize("module", [nn.Linear(32, 24), nn.Conv2d(32, 8, 3)], ids=["linear", "conv"])
def test_codes_of_at_most_seven_bits_fit(module: nn.Module, weight: str, activation: str, fits: bool) -> None:
    given = drawn(4, 32) if isinstance(module, nn.Linear) else drawn(1, 32, 6, 6)
    assert has_reduced_range(made(module, given, weight, activation)) is fits


@pytest.mark.parametrize(
    ("keys", "values", "fits"),
    [("float", "float", True), ("int8:tensor", "float", False), ("int7:tensor", "float", True)]
    + [("int7:tensor", "int8:tensor", False), ("int7:tensor", "int7:tensor", True)],
)
def test_attention_multiplies_activations(keys: str, values: str, fits: bool) -> None:
    probabilities = None if values == "float" else "uint8:tensor"
    specs = [parse_spec(text) if text else None for text in (keys, probabilities, values)]
    scheme = Scheme(activation=specs[0], probabilities=specs[1], values=specs[2])
    assert has_reduced_range(made(Attention(), drawn(2, 8, 32), "int7:channel", "uint8:tensor", scheme)) is fits
