"""Measure how far the output of a quantized layer is from the layer's own, on pieces of what reaches it.

Pieces are some rows of a linear layer's input, and a part of a picture for a convolution, so that those of many layers
fit into memory together. Of the outputs, too, only some are computed. That is enough to choose among ways to quantize.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.observers import largest_of_channels
from diffc.compiler.quantization.plan import Plan, Tensors, shared_out
from diffc.compiler.quantization.scales import weight_scales

aten = torch.ops.aten

ROWS, EDGE = 64, 12
"""How many rows of a sample are kept, and how many places along each axis of a picture."""

OUTPUTS = 128
"""About how many of a layer's outputs are computed."""

SEED = 0
"""Seeds the choice of pieces."""


@dataclass
class Seen:
    """Hold pieces of a layer's input, and the largest number of each channel in all of it, [steps, channels].

    ``exact`` are the outputs of the float layer for the pieces, once an error was measured.
    """

    steps: int
    pieces: list[tuple[torch.Tensor, Sample]] = field(default_factory=list)
    largest: torch.Tensor | None = None
    exact: list[torch.Tensor] = field(default_factory=list)

    def add(self, layer: Layer, x: torch.Tensor, sample: Sample, random: torch.Generator) -> None:
        """Take in one call."""
        channels = largest_of_channels(x, layer.axis)
        if self.largest is None:
            self.largest = torch.zeros(self.steps, len(channels))
        step = self.largest[sample.nearest(self.steps)]
        torch.maximum(step, channels, out=step)
        self.pieces.append((_piece(layer, x, random).clone(), sample))

    def error(self, layer: Layer, candidate: Layer) -> float:
        """Give the squared error of a candidate's output over the power of the layer's in float: the mean of all calls.

        So every step counts alike, however small its numbers are.
        """
        if not self.exact:
            thin = layer.in_float().thinned(_every(layer))
            self.exact = [thin.apply(piece, sample=sample) for piece, sample in self.pieces]
        thin, errors = _rounded(replace(candidate, bounds=None).thinned(_every(candidate))), list[float]()
        for (piece, sample), exact in zip(self.pieces, self.exact, strict=True):
            power = float(exact.square().sum())
            error = float((thin.apply(piece, sample=sample) - exact).square().sum())
            errors += [error / power] if power else []
        return sum(errors) / max(1, len(errors))


def seen(plan: Plan, layers: Sequence[Layer], *, samples: int, memory: float = 2.0) -> Iterator[tuple[Layer, Seen]]:
    """Give each linear layer and convolution that samples reach with what it is given, before any smoothing.

    ``samples`` of each graph are run, again for every few layers: as many as have pieces of ``memory`` gigabytes.
    """
    few = replace(plan, calibration=plan.calibration.few(samples))
    for some in shared_out(layers, lambda layer: _gigabytes(layer, samples), memory):
        found = {layer.name: Seen(plan.steps(layer)) for layer in some}
        random = torch.Generator().manual_seed(SEED)

        def visit(
            layer: Layer, inputs: Tensors, _: torch.Tensor, sample: Sample, found: dict[str, Seen] = found
        ) -> None:
            found[layer.name].add(layer, inputs[0], sample, random)  # noqa: B023

        few.watch([replace(layer, smoothing=None) for layer in some], visit)
        for layer in some:
            each = found.pop(layer.name)
            if each.pieces:
                yield layer, each


def _gigabytes(layer: Layer, samples: int) -> float:
    """Say how much memory the pieces of a layer's input take."""
    assert layer.weight is not None
    axes = layer.weight.dim() - 2
    return 4e-9 * samples * layer.weight.shape[1] * layer.groups * (EDGE**axes if axes else ROWS)


def _piece(layer: Layer, x: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    if layer.kind != "conv":
        rows = x.reshape(-1, x.shape[-1])
        return rows[torch.randperm(len(rows), generator=random)[:ROWS]]
    places = [int(torch.randint(max(1, n - EDGE + 1), (), generator=random)) for n in x.shape[2:]]
    item = int(torch.randint(len(x), (), generator=random))
    return x[(slice(item, item + 1), slice(None), *(slice(at, at + EDGE) for at in places))]


def _rounded(layer: Layer) -> Layer:
    """Round the weight of a layer that no pass has rounded, as a later one might."""
    spec = layer.scheme.weight
    if spec is None or layer.rounded is not None:
        return layer
    return replace(layer, rounded=weight_scales(layer.matrix(), spec, "mse" if spec.format.bits < 7 else "minmax"))


def _every(layer: Layer) -> int:
    """Say how many outputs there are for one that is looked at; of a grouped convolution all are."""
    assert layer.weight is not None
    return 1 if layer.groups > 1 else max(1, len(layer.weight) // OUTPUTS)
