"""What is learned, against trying every way to round a small layer."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from diffc.compiler.quantization.formats import parse_spec
from diffc.compiler.quantization.hessians import hessians
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.reconstruction import Learning, Soft, reconstruct_layer
from tests.one_graph import layer_of, plan_of
from tests.tolerances import LEARNED

SPECS = ("int4:channel", "uint4:channel", "int4:group=16", "e2m1:channel", "e4m3:tensor", "nvfp4", "mxfp4")


def layer(spec: str, columns: int = 64, rows: int = 16) -> tuple[Layer, torch.Tensor]:
    """Plan a layer whose inputs go together, and give their Gram matrix."""
    torch.manual_seed(3)
    x = torch.randn(400, columns) + 2 * torch.randn(400, 1)
    plan = plan_of(nn.Linear(columns, rows), [(x,)], spec)
    ((_, gram),) = hessians(plan, plan.layers, windows=400, quantized=False, memory=1.0)
    return layer_of(plan), gram


@pytest.mark.parametrize("spec", SPECS)
def test_a_weight_is_between_two_numbers_of_the_grid(spec: str) -> None:
    form = parse_spec(spec)
    assert form is not None
    soft = Soft(layer(spec)[0])
    down, up = (soft.value(torch.full_like(soft.step, at)) for at in (0.0, 1.0))
    for value in (down, up):
        quantized = value / soft.scale + soft.zero
        torch.testing.assert_close(form.format.round(quantized), quantized)
    nearest = soft.nearest.value(form)
    torch.testing.assert_close(torch.where((nearest - down).abs() < (nearest - up).abs(), down, up), nearest)
    inside = (soft.value(soft.up()) - soft.weight)[(down <= soft.weight) & (soft.weight <= up)]
    torch.testing.assert_close(inside, torch.zeros_like(inside))


def test_reconstruction_comes_near_to_the_best_rounding_of_all() -> None:
    torch.manual_seed(0)
    given, gram = layer("int3:channel", columns=8, rows=64)
    assert given.scheme.weight is not None
    soft = Soft(given)
    ways = torch.tensor(list(product((0.0, 1.0), repeat=8)))
    errors = soft.value(ways[:, None].expand(-1, 64, 8)) - soft.weight
    every = torch.einsum("wrc,cd,wrd->wr", errors, gram[0], errors)

    def error(value: torch.Tensor) -> float:
        difference = value - soft.weight
        return float(torch.einsum("rc,cd,rd->", difference, gram[0], difference))

    best, nearest = float(every.amin(0).sum()), error(soft.nearest.value(given.scheme.weight))
    learned = error(reconstruct_layer(given, gram, Learning(1000, 0.02)).value(given.scheme.weight))
    assert best <= learned * 1.0001
    assert (learned - best) / (nearest - best) < LEARNED


@pytest.mark.parametrize("iterations", [0, 3])
def test_reconstruction_is_never_worse_than_rounding_to_nearest(iterations: int) -> None:
    given, gram = layer("int8:channel")
    assert given.scheme.weight is not None
    found = reconstruct_layer(given, gram, Learning(iterations, 100.0))
    value, nearest = (r.value(given.scheme.weight) - given.matrix() for r in (found, Soft(given).nearest))
    assert float(((value @ gram[0]) * value).sum()) <= float(((nearest @ gram[0]) * nearest).sum())
