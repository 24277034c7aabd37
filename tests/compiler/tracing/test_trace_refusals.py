"""Small samplers, written by hand, that cannot be recorded: refused with the line of the sampler."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.trace import capture


def reads_an_item(x: torch.Tensor) -> Any:
    return x * x.sum().item()  # here


def reads_a_float(x: torch.Tensor) -> Any:
    return x * float(x[0, 0])  # here


def branches(x: torch.Tensor) -> Any:
    return x if x.sum() > 0 else -x  # here


def asks_for_truth(x: torch.Tensor) -> Any:
    return x * bool((x > 0).all())  # here


def lists(x: torch.Tensor) -> Any:
    return torch.randn(len(x.tolist()))  # here


def leaves_torch(x: torch.Tensor) -> Any:
    return torch.from_numpy(np.sort(x.numpy()))  # here


def finds(x: torch.Tensor) -> Any:
    return x.nonzero()  # here


def lists_a_written_constant(x: torch.Tensor) -> Any:
    result = torch.zeros(3)
    return result.copy_(x[0]).tolist()  # here


def permutes(x: torch.Tensor) -> Any:
    return x[:, torch.randperm(3)]  # here


def draws_doubles(x: torch.Tensor) -> Any:
    return x + torch.randn(2, 3, dtype=torch.float64)  # here


def draws_several(x: torch.Tensor) -> Any:
    return x.exp().multinomial(2, replacement=True)  # here


def disagrees(x: torch.Tensor) -> Any:
    return x + torch.ones(7)  # here


def raises(x: torch.Tensor) -> Any:
    raise ValueError("no such mode")  # here


REFUSALS: Mapping[Callable[..., Any], str] = {
    reads_an_item: "reads the value of a symbolic tensor",
    reads_a_float: "reads the value of a symbolic tensor",
    branches: "reads the value of a symbolic tensor",
    asks_for_truth: "reads the value of a symbolic tensor",
    lists: "",
    leaves_torch: "NumPy's sort of an image is not recorded",
    finds: "reads the value of a symbolic tensor",
    lists_a_written_constant: "tolist() is not supported for tensor subclasses, got Symbolic",
    permutes: "aten.randperm.default computes random values of a kind that programs do not have",
    draws_doubles: "aten.randn.default computes noise in torch.float64",
    draws_several: "torch.multinomial returns several samples with replacement",
    disagrees: "the pipeline refuses: ",
    raises: "the pipeline refuses: no such mode",
}


@pytest.mark.parametrize("refused", REFUSALS, ids=lambda function: function.__name__)
def test_refuses_with_the_line_of_the_sampler(refused: Callable[..., Any]) -> None:
    def sample() -> Any:
        return refused(torch.randn(2, 3))

    with pytest.raises(CaptureError) as caught:
        capture(sample, {})
    file, line, source = re.fullmatch(r"(.+?):(\d+): (.+)", caught.value.where or "").groups()  # type: ignore[union-attr]
    assert Path(file) == Path(__file__)
    assert source.endswith("# here") and linecache.getline(file, int(line)).strip() == source
    assert 0 < int(line) - refused.__code__.co_firstlineno < 3
    assert REFUSALS[refused] in caught.value.what
    assert caught.value.fix


def test_refuses_a_sampler_that_returns_no_value() -> None:
    with pytest.raises(CaptureError, match="returns nothing that depends on the request or on noise"):
        capture(lambda: torch.zeros(3), {})


def test_refuses_a_value_that_outlives_its_trace() -> None:
    kept = []

    def sample() -> torch.Tensor:
        kept.append(torch.randn(3))
        return kept[0]

    capture(sample, {})
    with pytest.raises(CaptureError, match="reaches a symbolic value after its trace has ended"):
        kept[0] + 1
