"""Hold one layer of a graph, and how it is quantized: its scheme, ranges, rounded weight and corrections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from diffc.compiler.graph.lazy_weights import read
from diffc.compiler.quantization.formats import Scheme, Spec, spread


@dataclass(frozen=True)
class Site:
    """Point to an operator in a graph."""

    graph: str
    node: str


@dataclass(frozen=True)
class Rounded:
    """Hold a rounded weight: codes in its shape as the format stores them, scales and zeros [rows] or [rows, groups].

    Where the scales are themselves rounded, ``outer`` is the scale of the scales: scale = outer * stored.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    outer: torch.Tensor | None = None

    def value(self, spec: Spec) -> torch.Tensor:
        """Give the weight that this stands for."""
        scale = self.scale if self.outer is None else self.scale * self.outer.reshape(-1, 1)
        offset = 0.0 if self.zero is None else spread(self.zero, self.codes.shape, spec.group)
        return (spec.format.decode(self.codes) - offset) * spread(scale, self.codes.shape, spec.group)


@dataclass(frozen=True)
class Layer:
    """Hold what is known of one layer: its weight, where it is read, its scheme, and what passes have found.

    ``low`` and ``high`` are the ranges of its inputs, [inputs, 1] or with step-indexed scales [inputs, steps], and
    ``bounds`` that of its output. ``smoothing`` [channels] multiplies the input, and divides the weight. ``branch`` is
    a pair of matrices [rank, channels * kernel] and [rows, rank], computed beside the weight and subtracted from it.
    ``shift`` [rows] is added to the output, as a part of the bias. ``options`` is what a convolution takes after its
    bias. Of a layer that is ``asked`` for, a user chose the scheme.
    """

    name: str
    component: str
    kind: str
    sites: tuple[Site, ...]
    weight: torch.Tensor | None = None
    groups: int = 1
    options: tuple[Any, ...] = ()
    scheme: Scheme = Scheme()
    asked: bool = False
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    bounds: tuple[float, float] | None = None
    smoothing: torch.Tensor | None = None
    branch: tuple[torch.Tensor, torch.Tensor] | None = None
    rounded: Rounded | None = None
    shift: torch.Tensor | None = None

    @property
    def axis(self) -> int:
        """Give the axis of the input's channels."""
        return 1 if self.kind == "conv" else -1

    def matrix(self, every: int = 1) -> torch.Tensor:
        """Give what is to be rounded, as float32 in the weight's shape: smoothed, and without the low-rank branch.

        With ``every`` it is that of one in so many outputs, from the first on.
        """
        assert self.weight is not None
        weight = read(self.weight).detach()[::every].float()
        if self.smoothing is not None:
            weight = weight / self.smoothing.reshape(1, -1, *[1] * (weight.dim() - 2))
        if self.branch is not None:
            down, up = self.branch
            weight = weight - (up[::every] @ down).reshape(weight.shape)
        return weight


def smoothed(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Multiply an input's channels with what smoothing took from the weight's."""
    if layer.smoothing is None:
        return x
    return x * layer.smoothing.reshape(-1, *[1] * (x.dim() - 2) if layer.axis == 1 else [])


def for_all_steps(layer: Layer) -> Layer:
    """Let a layer with scales for single steps have one for all, which is yet to be found."""
    spec = layer.scheme.activation
    if spec is None or spec.when != "step":
        return layer
    return replace(layer, scheme=replace(layer.scheme, activation=replace(spec, when="static")), low=None, high=None)
