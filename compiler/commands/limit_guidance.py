"""Hook the denoisers of a diffusers pipeline so that it guides in an interval of the steps only, as a bundle can."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from diffc.compiler.tracing.pipeline import CALLBACK
from diffc.compiler.tracing.pipeline_inputs import latent_models
from diffc.compiler.tracing.returned_values import returned_tensors, with_tensors


@contextlib.contextmanager
def limit_guidance(pipeline: Any, recipe: Any, steps: int) -> Iterator[dict[str, Any]]:
    """Replace the unconditional branch by the conditional one outside of the recipe's guidance interval.

    There any guidance scale then has no effect. The branches are the halves of a batch, the conditional one last, or
    two calls, the conditional one first, as diffusers orders them. Yields the recipe with the callback that counts
    steps among its options.
    """
    if not recipe["guidance_interval"]:
        yield recipe
        return
    start, stop = (int(fraction * steps) for fraction in recipe["guidance_interval"])
    denoisers = latent_models(pipeline)
    done, first_branches = 0, [list[torch.Tensor]() for _ in denoisers]

    def after(_pipeline: Any, _index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        done += 1
        for first in first_branches:
            first.clear()
        return values

    def conditional(forward: Callable[..., Any], first: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        returned = forward(*args, **kwargs)
        if start <= done < stop:
            return returned
        tensors = returned_tensors(returned)
        if len(tensors[0]) == 2 * recipe["batch"]:
            return with_tensors(returned, (torch.cat([tensor.chunk(2)[1]] * 2) for tensor in tensors))
        first.extend(tensors if not first else [])
        return with_tensors(returned, iter(first))

    before = [denoiser.forward for denoiser in denoisers]
    for denoiser, forward, first in zip(denoisers, before, first_branches, strict=True):
        denoiser.__dict__["forward"] = partial(conditional, forward, first)
    try:
        yield recipe | {"options": recipe["options"] | {CALLBACK: after}}
    finally:
        for denoiser, forward in zip(denoisers, before, strict=True):
            denoiser.__dict__["forward"] = forward
