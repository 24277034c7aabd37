"""A component that selects values by a mask computes the same in a bundle, however many the mask selects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from diffc.compiler import capture, write_bundle
from diffc.compiler.errors import CaptureError
from diffc.runtime import load
from tests.tolerances import STAGED

ROWS, TOKENS, WIDTH = 4, 6, 8


class Attention(nn.Module):
    """Attend to the tokens that a mask selects, and put zeros in the place of the others behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.time = nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU())

    def forward(self, sample: torch.Tensor, text: torch.Tensor, mask: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the sample [1, ROWS, WIDTH], moved towards the tokens [1, TOKENS, WIDTH]."""
        selected = self.key(text)[:, mask.flatten().nonzero().flatten()]
        whole = torch.cat([sample * self.time(t), selected], 1)
        whole = functional.scaled_dot_product_attention(whole, whole, whole)
        whole = functional.pad(whole, (0, 0, 0, ROWS + TOKENS - whole.shape[1]))
        return sample + whole[:, :ROWS] + whole[:, ROWS:].mean(1, keepdim=True)


@pytest.mark.parametrize("target", ["ort-fp32", "ov-fp32"])
def test_a_mask_decides_how_many_values_a_component_computes(target: str, tmp_path: Path) -> None:
    if target.startswith("ov"):
        pytest.importorskip("openvino")
    torch.manual_seed(0)
    net = Attention().eval().requires_grad_(False)

    def sample() -> torch.Tensor:
        x, text, mask = torch.randn(1, ROWS, WIDTH), torch.randn(1, TOKENS, WIDTH), torch.randn(1, TOKENS) > 0
        for t in (1.0, 0.5):
            x = net(sample=x, text=text, mask=mask, t=torch.tensor([t]))
        return x

    sampler, counts = load(write_bundle(capture(sample, {"net": net}), tmp_path / "x.diffc", target)), set[int]()
    for seed in range(8):
        torch.manual_seed(seed)
        expected = sample()
        counts.add(int((torch.randn(1, TOKENS) > 0).sum()))
        np.testing.assert_allclose(sampler(seed=seed, output="np"), expected, rtol=0, atol=STAGED)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x[x > 0], "a result .* of a component has a size that values of the run decide"),
        (lambda x: x if x[x > 0].numel() > 2 else -x, "a branch depends on a size that values of the run decide"),
    ],
)
def test_other_uses_of_such_a_size_are_refused_by_name(forward: Any, message: str) -> None:
    net = nn.Module()
    net.forward = forward
    with pytest.raises(CaptureError, match=message):
        capture(lambda: net(torch.randn(4)), {"net": net})
