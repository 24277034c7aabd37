"""Export modules that branch on open sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.export import export

MULTIPLE, LEAST, MOST = 4, 3, 13


class Rows(nn.Module):
    """Compute with rows, whose number each request decides."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Linear(2, 2)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        """Return a mean, so that the result is of a fixed size."""
        return (self.weight(self.function(tensors[0])).mean(0),)


def padded(x: torch.Tensor) -> torch.Tensor:
    missing = -x.shape[0] % MULTIPLE
    if missing > 0:
        mask = torch.cat([torch.zeros(x.shape[0], dtype=torch.bool), torch.ones(missing, dtype=torch.bool)])
        return torch.cat([x, x[-1:].repeat(missing, 1)]).masked_fill(mask[:, None], 0.5)
    return x.masked_fill(torch.zeros(x.shape[0], dtype=torch.bool)[:, None], 0.5)


def attended(x: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Attend to all rows but the ``first`` ones, by a mask where their number is no multiple."""
    mask = None
    if x.shape[0] % MULTIPLE:
        mask = torch.zeros(1, x.shape[0], dtype=torch.bool)
        mask[:, first : x.shape[0]] = True
    return F.scaled_dot_product_attention(x[None], x[None], x[None], mask)[0]


def captured(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[nn.Module, nn.Module]:
    module = Rows(function).requires_grad_(False)
    sizes = [{0: Dim.DYNAMIC(min=LEAST, max=MOST)}]
    return module, export("rows", module, [torch.zeros(6, 2)], sizes=sizes).module(check_guards=False)


@pytest.mark.parametrize("function", [padded, attended])
def test_a_branch_that_appends_or_hides_no_rows_is_part_of_the_graph(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    module, body = captured(function)
    for count in range(LEAST, MOST + 1):
        x = torch.randn(count, 2)
        torch.testing.assert_close(body(x), module(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2 if x.shape[0] % 3 else x,
        lambda x: x + 1 if x.shape[0] % 5 != 2 else x + 2,
        lambda x: attended(x, 1),
        lambda x: torch.cat([x, x[: x.shape[0] % 2]]) if x.shape[0] % 2 == 0 else x,
        lambda x: x * 2 if x.shape[0] % 4 == 0 and x.shape[0] % 3 == 0 else x,
        lambda x: (x * 2 if 5 < x.shape[0] < 11 else x) if x.shape[0] % 5 == 0 else x,
        lambda x: x * 2 if x.shape[0] in (5, 7, 11) and x.shape[0] not in (5, 11) else x,
    ],
)
def test_a_branch_that_computes_something_else_is_refused(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(CaptureError, match="rows computes something else where a size that each request decides is"):
        captured(function)
