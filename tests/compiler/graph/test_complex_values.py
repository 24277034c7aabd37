"""Graphs without complex numbers compute what torch computes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.export import export
from tests.tolerances import GRAPH

X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
TURNS = torch.polar(torch.ones(6, 4), torch.arange(24.0).reshape(6, 4))


def as_complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.reshape(2, 6, 4, 2))


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "rotary positions": lambda x: torch.view_as_real(as_complex(x) * TURNS[torch.arange(6).flip(0)]).flatten(2),
    "conjugates of parts": lambda x: torch.view_as_real(torch.cat([as_complex(x)[:1], as_complex(x)[1:].conj()])),
    "shapes": lambda x: torch.view_as_real(as_complex(x).reshape(2, 24).unsqueeze(1).transpose(0, 2).expand(24, 3, 2)),
    "splits": lambda x: (as_complex(x).split(2, 1)[1].real, as_complex(x).chunk(2, 2)[1].imag),
    "sums": lambda x: torch.view_as_real((as_complex(x) + x[..., :4]) - (1 + 2j)),
    "sums of real and complex": lambda x: torch.view_as_real(1.5 + as_complex(x) * 2 + (x[..., :4] - as_complex(x))),
    "sums of other shapes": lambda x: torch.view_as_real((x + as_complex(x)[0, 0, 0]) - (as_complex(x)[0, 0, 0] - x)),
    "quotients": lambda x: torch.view_as_real(as_complex(x) / (as_complex(x + 3) * 1j) / 2.0 + 1 / as_complex(x + 1)),
    "sizes and angles": lambda x: (as_complex(x).abs(), as_complex(x).angle()),
    "polar": lambda x: torch.view_as_real(torch.polar(x.abs(), x)),
    "exponential": lambda x: torch.view_as_real(torch.exp(1j * x)),
    "Fourier transforms": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.exp(2j * x[..., :5])),
    "of complex numbers": lambda x: torch.fft.ifft2(torch.fft.fft2(torch.complex(x[0], x[1])) * 2).abs(),
    "conversions": lambda x: torch.view_as_real(x.to(torch.complex64) * 1j + x[..., :1].type_as(as_complex(x))),
    "real and complex": lambda x: torch.view_as_real(torch.cat([as_complex(x), x[..., :4]])),
    "zeros": lambda x: torch.view_as_real(torch.cat([as_complex(x), torch.zeros(1, 6, 4, dtype=torch.complex64)])),
    "padding": lambda x: torch.view_as_real(
        nn.utils.rnn.pad_sequence([as_complex(x)[0], as_complex(x)[1, :2]], padding_value=2.0)
    ),
    "bfloat16": lambda x: (torch.view_as_real(as_complex(x.bfloat16().float()) * TURNS)).bfloat16().float(),
}


class Computes(nn.Module):
    """Compute all functions, with a buffer of complex numbers among the constants."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", TURNS * 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rest = [y for f in FUNCTIONS.values() for y in (f(x) if isinstance(f(x), tuple) else [f(x)])]
        return torch.view_as_real(as_complex(x) * self.turns), *rest


def test_parts_are_computed_as_torch_computes_complex_numbers() -> None:
    module = Computes()
    body = export("net", module, (X,))
    for computed, expected in zip(body.module()(X), module(X), strict=True):
        assert computed.shape == expected.shape and computed.dtype == expected.dtype
        assert (computed - expected).abs().max() <= GRAPH * expected.abs().max()


def test_only_a_transform_has_complex_operands() -> None:
    body = export("net", Computes(), (X,))
    fft = torch.ops.aten
    stays = {fft.fft_rfft.default, fft.fft_irfft.default, fft.fft_fft2.default, fft.fft_ifft2.default}
    around = {fft.complex.default, fft.view_as_real.default}
    values = [(node.target, node.meta.get("val")) for node in body.graph.nodes]
    with_complex = {target for target, value in values if isinstance(value, Tensor) and value.is_complex()}
    assert with_complex <= stays | around


def test_a_graph_that_returns_complex_numbers_is_refused() -> None:
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_complex(x) * 2

    with pytest.raises(CaptureError, match="returns complex numbers"):
        export("net", Returns(), (torch.ones(3, 2),))


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
def test_a_conversion_to_real_drops_the_imaginary_part() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return as_complex(x).float().abs()

    torch.testing.assert_close(export("net", Drops(), (X,)).module()(X), as_complex(X).real.abs())
