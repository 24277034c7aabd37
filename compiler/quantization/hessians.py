"""Accumulate the Hessian of each layer's input activations, as GPTQ does: the sum of ``x x'`` over its inputs x.

The weight of a linear layer, or of a convolution seen as a linear layer of windows, is a matrix of rows and columns. A
column is multiplied with one value of each window. The squared error of a layer's output depends on its inputs only
through the Hessian H of the windows, [blocks, columns, columns]: for an error E of the weight it is the trace of
E H E'.

A block is a group of a grouped convolution, or where there are more columns than `WIDEST` a part of the channels:
correlations across parts are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.graph.body import body_of
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan, Tensors, in_batches

WIDEST = 4096
"""The columns of the widest block: its Hessian is 64 MB."""

SEED = 0
"""Seeds the choice of windows."""


def blocks(layer: Layer) -> int:
    """Count the blocks of a layer's Hessian: its groups, or parts of equally many channels."""
    assert layer.weight is not None
    channels = layer.weight.shape[1]
    kernel = math.prod(layer.weight.shape[2:])
    if layer.groups > 1:
        return layer.groups
    return next(n for n in range(1, channels + 1) if channels % n == 0 and (channels // n * kernel <= WIDEST))


def by_block(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """Arrange a weight as blocks [blocks, rows, columns]."""
    count = blocks(layer)
    if layer.groups > 1:
        return weight.reshape(count, len(weight) // count, -1)
    return weight.reshape(len(weight), count, -1).transpose(0, 1)


def from_blocks(layer: Layer, arranged: torch.Tensor) -> torch.Tensor:
    """Undo `by_block`."""
    assert layer.weight is not None
    weight = arranged if layer.groups > 1 else arranged.transpose(0, 1)
    return weight.reshape(layer.weight.shape)


def hessians(
    plan: Plan, layers: Sequence[Layer], *, windows: int, quantized: bool, memory: float
) -> Iterator[tuple[Layer, torch.Tensor]]:
    """Yield each layer that the samples reach with the Hessian of its inputs, averaged over windows.

    The samples are run again for each batch of layers whose Hessians fit into ``memory`` gigabytes. ``windows`` is the
    number of windows to use, over all samples. If ``quantized``, the inputs are quantized where their ranges are known.
    """
    calls = {layer.name: sum(len(plan.calibration.of(plan.graphs[s.graph])) for s in layer.sites) for layer in layers}
    windowed = _windows(plan)
    for batch in in_batches([layer for layer in layers if calls[layer.name]], _gigabytes, memory):
        sums = {layer.name: _Sum(windowed[layer.name], -(-windows // calls[layer.name])) for layer in batch}

        def visit(layer: Layer, inputs: Tensors, output: torch.Tensor, sample: Sample, sums: Sums = sums) -> None:
            x = layer.quantized(inputs[0], sample) if quantized else inputs[0]
            sums[layer.name].add(layer, x, output)

        plan.watch(batch, visit)
        for layer in batch:
            total = sums.pop(layer.name)
            if total.total is not None:
                yield layer, total.total / total.count


def _gigabytes(layer: Layer) -> float:
    """Compute the memory of a layer's Hessian."""
    assert layer.weight is not None
    return 4e-9 * blocks(layer) * by_block(layer, layer.weight).shape[-1] ** 2


@dataclass(frozen=True)
class _Window:
    """Hold the geometry of a convolution, for each spatial axis."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]


def _windows(plan: Plan) -> dict[str, _Window]:
    """Map the names of layers to the geometry of their windows."""
    at = {(site.graph, site.node): layer for layer in plan.layers for site in layer.sites if layer.kind != "attention"}
    windows = dict[str, _Window]()
    for graph in plan.graphs.values():
        for node in body_of(graph).graph.nodes:
            layer = at.get((graph.name, node.name))
            if layer is not None and layer.weight is not None:
                axes = layer.weight.dim() - 2 if layer.kind == "conv" else 0
                windows[layer.name] = _Window(*(_option(node, n, axes, 0 if n == 4 else 1) for n in (3, 4, 5)))
    return windows


def _option(node: fx.Node, at: int, axes: int, otherwise: int) -> Sequence[int]:
    option = node.args[at] if axes and len(node.args) > at else otherwise
    listed = list(option) if isinstance(option, Sequence) else [option]
    return listed * axes if len(listed) == 1 else listed  # type: ignore[return-value]


class _Sum:
    """Sum the Hessians of some windows of each call."""

    def __init__(self, window: _Window, windows: int) -> None:
        self.window, self.windows, self.count = window, windows, 0
        self.total: torch.Tensor | None = None
        self.random = torch.Generator().manual_seed(SEED)

    def add(self, layer: Layer, x: torch.Tensor, output: torch.Tensor) -> None:
        """Add the windows of a call's input."""
        rows = self._convolved(layer, x, output) if layer.kind == "conv" else self._subset(x.reshape(-1, x.shape[-1]))
        arranged = rows.reshape(len(rows), blocks(layer), -1).transpose(0, 1).float()
        if self.total is None:
            self.total = torch.zeros(len(arranged), arranged.shape[-1], arranged.shape[-1])
        self.total.baddbmm_(arranged.transpose(1, 2), arranged)
        self.count += len(rows)

    def _random(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self.random)[: self.windows]

    def _subset(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if len(rows) <= self.windows else rows[self._random(len(rows))]

    def _convolved(self, layer: Layer, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Read the windows [windows, channels * kernel] of random places of the output."""
        assert layer.weight is not None
        window, kernel, axes = self.window, layer.weight.shape[2:], output.dim() - 2
        padded = torch.nn.functional.pad(x, [p for p in reversed(window.padding) for _ in range(2)])
        shape = (len(output), *output.shape[2:])
        item, *places = torch.unravel_index(self._random(math.prod(shape)), shape)
        index = [item.reshape(-1, *[1] * axes)]
        for axis, (place, size) in enumerate(zip(places, kernel, strict=True)):
            offsets = torch.arange(size) * window.dilation[axis]
            seen = (place * window.stride[axis])[:, None] + offsets
            index.append(seen.reshape(-1, *[1] * axis, size, *[1] * (axes - axis - 1)))
        return padded.movedim(1, -1)[tuple(index)].movedim(-1, 1).reshape(len(item), -1)


Sums = dict[str, _Sum]
