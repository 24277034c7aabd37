"""Trace samplers with functions that shrink masks pixel by pixel."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Tensor
from diffc.compiler.tracing.trace import trace

SHAPE = (2, 1, 6, 7)


def shrinks(masks: torch.Tensor) -> torch.Tensor:
    shrunk = []
    for mask in masks:
        old = deepcopy(mask)
        for i in range(mask.shape[1]):
            for j in range(mask.shape[2]):
                if old[0][i][j] == 1:
                    continue
                if i != 0:
                    mask[:, i - 1, j] = 0
                if j < mask.shape[2] - 1:
                    mask[:, i, j + 1] = 0
        shrunk.append(mask)
    return torch.stack(shrunk)


def shrinks_a_copy(masks: torch.Tensor) -> torch.Tensor:
    return shrinks(masks.clone())


def shrinks_to_halves(masks: torch.Tensor) -> torch.Tensor:
    return torch.stack([mask * 0.5 if mask[0][0][0] == 1 else mask for mask in masks])


def shrinks_one_row(masks: torch.Tensor) -> torch.Tensor:
    for mask in masks:
        for j in range(1, mask.shape[2]):
            if mask[0][2][j] != 1:
                mask[:, 2, j - 1] = 0
    return masks


@pytest.mark.parametrize("name", ["shrinks", "shrinks_a_copy"])
def test_a_function_that_shrinks_masks_is_recorded(name: str) -> None:
    def sampler(mask: Any) -> Any:
        mask = mask.clone()
        shrunk = globals()[name](mask)
        shrunk *= 0.5
        return {"masks": torch.cat([shrunk, mask, torch.randn(2, 1, 6, 7)])}

    program = trace(sampler, {}, {"mask": Tensor(SHAPE)}, calls=ComponentCalls())
    noise = torch.zeros(SHAPE)
    mask = torch.where(torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.2, 0.25, 1.0)
    torch.testing.assert_close(
        evaluate(program, {"mask": mask, "n0": noise})[0][:4], sampler(mask)["masks"][:4], rtol=0, atol=0
    )


def shrinks_more_in_a_small_mask(masks: torch.Tensor) -> torch.Tensor:
    return shrinks(masks) if masks.shape[-1] == SHAPE[-1] else shrinks(shrinks(masks))


def test_a_function_that_shrinks_masks_of_another_size_otherwise_is_refused() -> None:
    def sampler(mask: Any) -> Any:
        whole = globals()["shrinks_more_in_a_small_mask"](mask.clone())
        part = globals()["shrinks_more_in_a_small_mask"](mask[..., :5].clone())
        return whole + part.sum() + torch.randn(2, 1, 6, 7)

    with pytest.raises(CaptureError, match=r"computes something else with masks \[2, 1, 6, 5\]"):
        trace(sampler, {}, {"mask": Tensor(SHAPE)}, calls=ComponentCalls())


@pytest.mark.parametrize("name", ["shrinks_to_halves", "shrinks_one_row"])
def test_a_function_that_does_something_else_is_refused(name: str) -> None:
    def sampler(mask: Any) -> Any:
        return globals()[name](mask.clone()) + torch.randn(2, 1, 6, 7)

    with pytest.raises(CaptureError, match="reads the value of a symbolic tensor"):
        trace(sampler, {}, {"mask": Tensor(SHAPE)}, calls=ComponentCalls())
