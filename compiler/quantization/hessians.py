"""Sum up how the numbers that a layer's weights are multiplied with go together: the Gram matrix of its inputs.

The weight of a linear layer, or of a convolution seen as a linear layer of windows, is a matrix of rows and columns. A
column meets one number of each window. The Gram matrix of the windows, [blocks, columns, columns], is all that the
squared error of a layer's output depends on: of the weight's error E it is the trace of E G E'.

A block is a group of a grouped convolution, or where there are more columns than `WIDEST` a part of the channels:
what is correlated across parts is left out.
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
from diffc.compiler.quantization.plan import Plan, Tensors, shared_out

WIDEST = 4096
"""The columns of the widest block: its Gram matrix is 64 MB."""

SEED = 0
"""Seeds the choice of windows."""


def blocks(layer: Layer) -> int:
    """Count the blocks of a layer's Gram matrix: its groups, or parts of equally many channels."""
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
    whole = arranged if layer.groups > 1 else arranged.transpose(0, 1)
    return whole.reshape(layer.weight.shape)


def grams(
    plan: Plan, layers: Sequence[Layer], *, windows: int, quantized: bool, memory: float
) -> Iterator[tuple[Layer, torch.Tensor]]:
    """Give each layer that the samples reach with the Gram matrix of its inputs, over the number of windows.

    The samples are run again for every few layers: as many as have matrices of no more than ``memory`` gigabytes.
    ``windows`` is how many are looked at, over all samples. ``quantized`` takes the inputs as a quantized layer
    gets them, where that is known.
    """
    calls = {layer.name: sum(len(plan.calibration.of(plan.graphs[s.graph])) for s in layer.sites) for layer in layers}
    windowed = _windows(plan)
    for some in shared_out([layer for layer in layers if calls[layer.name]], _gigabytes, memory):
        sums = {layer.name: _Sum(windowed[layer.name], -(-windows // calls[layer.name])) for layer in some}

        def visit(layer: Layer, inputs: Tensors, output: torch.Tensor, sample: Sample, sums: Sums = sums) -> None:
            x = layer.quantized(inputs[0], sample) if quantized else inputs[0]
            sums[layer.name].add(layer, x, output)

        plan.watch(some, visit)
        for layer in some:
            found = sums.pop(layer.name)
            if found.total is not None:
                yield layer, found.total / found.count


def _gigabytes(layer: Layer) -> float:
    """Say how much memory a layer's matrices take."""
    assert layer.weight is not None
    return 4e-9 * blocks(layer) * by_block(layer, layer.weight).shape[-1] ** 2


@dataclass(frozen=True)
class _Window:
    """Say where a convolution looks: for each spatial axis."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]


def _windows(plan: Plan) -> dict[str, _Window]:
    """Map the names of layers to their windows, which a linear layer does not need."""
    at = {(site.graph, site.node): layer for layer in plan.layers for site in layer.sites if layer.kind != "attention"}
    found = dict[str, _Window]()
    for graph in plan.graphs.values():
        for node in body_of(graph).graph.nodes:
            layer = at.get((graph.name, node.name))
            if layer is not None and layer.weight is not None:
                axes = layer.weight.dim() - 2 if layer.kind == "conv" else 0
                found[layer.name] = _Window(*(_option(node, n, axes, 0 if n == 4 else 1) for n in (3, 4, 5)))
    return found


def _option(node: fx.Node, at: int, axes: int, otherwise: int) -> Sequence[int]:
    given = node.args[at] if axes and len(node.args) > at else otherwise
    listed = list(given) if isinstance(given, Sequence) else [given]
    return listed * axes if len(listed) == 1 else listed  # type: ignore[return-value]


class _Sum:
    """Add up the Gram matrices of some windows of each call."""

    def __init__(self, window: _Window, windows: int) -> None:
        self.window, self.windows, self.count = window, windows, 0
        self.total: torch.Tensor | None = None
        self.random = torch.Generator().manual_seed(SEED)

    def add(self, layer: Layer, x: torch.Tensor, output: torch.Tensor) -> None:
        """Take in a call's input and output."""
        rows = self._convolved(layer, x, output) if layer.kind == "conv" else self._some(x.reshape(-1, x.shape[-1]))
        arranged = rows.reshape(len(rows), blocks(layer), -1).transpose(0, 1).float()
        if self.total is None:
            self.total = torch.zeros(len(arranged), arranged.shape[-1], arranged.shape[-1])
        self.total.baddbmm_(arranged.transpose(1, 2), arranged)
        self.count += len(rows)

    def _chosen(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self.random)[: self.windows]

    def _some(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if len(rows) <= self.windows else rows[self._chosen(len(rows))]

    def _convolved(self, layer: Layer, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Cut out windows [windows, channels * kernel]: places of the output are chosen, and what they see is read."""
        assert layer.weight is not None
        window, kernel, axes = self.window, layer.weight.shape[2:], output.dim() - 2
        padded = torch.nn.functional.pad(x, [p for p in reversed(window.padding) for _ in range(2)])
        shape = (len(output), *output.shape[2:])
        item, *places = torch.unravel_index(self._chosen(math.prod(shape)), shape)
        index = [item.reshape(-1, *[1] * axes)]
        for axis, (place, size) in enumerate(zip(places, kernel, strict=True)):
            offsets = torch.arange(size) * window.dilation[axis]
            seen = (place * window.stride[axis])[:, None] + offsets
            index.append(seen.reshape(-1, *[1] * axis, size, *[1] * (axes - axis - 1)))
        return padded.movedim(1, -1)[tuple(index)].movedim(-1, 1).reshape(len(item), -1)


Sums = dict[str, _Sum]
