"""Functions that are replaced during an export compute what those of torch do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

from diffc.compiler.graph.export import export


def test_a_diagonal_is_written_without_strides() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.zeros(4, 4)
            mask[:3, :3] = float("-inf")
            mask[:3, :3].fill_diagonal_(0.0)
            return x + mask

    x = torch.randn(4, 4)
    body = export("masked", Masked(), [x])
    assert torch.equal(body.module()(x), Masked()(x))


class Pads(nn.Module):
    """Pad sequences of two open sizes, real and complex, on one side."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self.side = side

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        one, two = tensors
        parts = [torch.cat([one, one]), two, one]
        real = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=2.0, padding_side=self.side)
        pairs = [torch.view_as_complex(part.unflatten(1, (2, 2))) for part in parts]
        return real, torch.view_as_real(nn.utils.rnn.pad_sequence(pairs, padding_value=3.0, padding_side=self.side))


@pytest.mark.parametrize("side", ["left", "right"])
def test_sequences_are_padded_to_the_longest_whichever_it_is(side: str) -> None:
    sizes = [{0: Dim.DYNAMIC(min=2, max=100)}] * 2
    body = export("pads", Pads(side), [torch.zeros(3, 4), torch.zeros(5, 4)], sizes=sizes).module(check_guards=False)
    for one, two in ((3, 5), (2, 9), (9, 2), (4, 8)):
        inputs = torch.randn(one, 4), torch.randn(two, 4)
        for computed, expected in zip(body(*inputs), Pads(side)(*inputs), strict=True):
            assert torch.equal(computed, expected)
