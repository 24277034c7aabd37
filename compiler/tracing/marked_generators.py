"""Mark a pipeline's generator, to separate the noise that the pipeline draws with it from noise that it draws without.

In diffusers the seed of the generator decides the one, and the state of the process the other. A program draws the
other from a generator apart, so that it shifts nothing that the seed decides:

    n0 = noise(image, separate=true)     vae.encode(image).latent_dist.sample()
    n1 = noise()                         randn_tensor(shape, generator=generator)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from diffc.compiler.ir.program import Op, Program
from diffc.compiler.tracing.recorder import GENERATOR
from diffc.compiler.tracing.spawned_seeds import RequestSeed

SEPARATE = "separate"
"""The attribute of a noise of the generator apart."""


class MarkedGenerator(torch.Generator):
    """Stand for a generator of the request, whose seed only a recorder reads as a number."""

    def __new__(cls, seed: int) -> MarkedGenerator:
        """Build the generator of a seed by which a trace tells it apart from others."""
        generator = super().__new__(cls)
        generator.manual_seed(seed)
        return generator

    def __init__(self, seed: int) -> None:
        self._seed = RequestSeed(seed)

    def initial_seed(self) -> Any:
        """Return what stands for the seed: what a pipeline computes from that of a trace is not that of a request."""
        return self._seed


def with_separate_noise(program: Program) -> Program:
    """Return a program of one marked generator, without its marks, whose noise of no generator is separate.

    Noise stays as it is where none has the generator: it is all that the request's seed can decide.
    """
    is_marked = [op.attr(GENERATOR) is not None for op in program.ops if op.operator == "noise"]
    is_mixed = any(is_marked) and not all(is_marked)
    return replace(program, ops=tuple(_unmarked(op, is_mixed=is_mixed) for op in program.ops))


def _unmarked(op: Op, *, is_mixed: bool) -> Op:
    if op.operator != "noise":
        return op
    if is_mixed and op.attr(GENERATOR) is None:
        return replace(op, attrs=(*op.attrs, (SEPARATE, True)))
    return replace(op, attrs=tuple(attr for attr in op.attrs if attr[0] != GENERATOR))
