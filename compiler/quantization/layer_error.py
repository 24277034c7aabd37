"""Measure the output error of a quantized layer, on pieces of its calibration inputs.

A piece is a few rows of a linear layer's input, or a part of an image for a convolution, so that the pieces of many
layers fit into memory together. Only some output channels are computed. That is enough to compare candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.observers import largest_of_channels
from diffc.compiler.quantization.plan import Plan, Tensors, in_batches
from diffc.compiler.quantization.scales import weight_scales

aten = torch.ops.aten

ROWS, EDGE = 64, 12
"""How many rows of a sample are kept, and how many places along each axis of an image."""

OUTPUTS = 128
"""About how many of a layer's outputs are computed."""

SEED = 0
"""Seeds the choice of pieces."""


@dataclass
class Inputs:
    """Hold pieces of a layer's input, and the largest magnitude of each channel in all of it, [steps, channels].

    ``exact`` are the outputs of the float layer for the pieces, once an error was measured.
    """

    steps: int
    pieces: list[tuple[torch.Tensor, Sample]] = field(default_factory=list)
    largest: torch.Tensor | None = None
    exact: list[torch.Tensor] = field(default_factory=list)

    def add(self, layer: Layer, x: torch.Tensor, sample: Sample, random: torch.Generator) -> None:
        """Add the input of one call."""
        channels = largest_of_channels(x, layer.axis)
        if self.largest is None:
            self.largest = torch.zeros(self.steps, len(channels))
        step = self.largest[sample.nearest(self.steps)]
        torch.maximum(step, channels, out=step)
        self.pieces.append((_piece(layer, x, random).clone(), sample))

    def error(self, layer: Layer, candidate: Layer) -> float:
        """Return the squared error of a candidate's output relative to the float layer's, averaged over calls.

        So every step counts alike, however small its values are.
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


def layer_inputs(
    plan: Plan, layers: Sequence[Layer], *, samples: int, memory: float = 2.0
) -> Iterator[tuple[Layer, Inputs]]:
    """Yield each linear layer and convolution that samples reach with its inputs, before any smoothing.

    ``samples`` of each graph are run, again for each batch of layers whose pieces fit into ``memory`` gigabytes.
    """
    few = replace(plan, calibration=plan.calibration.few(samples))
    for batch in in_batches(layers, lambda layer: _gigabytes(layer, samples), memory):
        inputs_of = {layer.name: Inputs(plan.steps(layer)) for layer in batch}
        random = torch.Generator().manual_seed(SEED)

        def visit(
            layer: Layer, inputs: Tensors, _: torch.Tensor, sample: Sample, inputs_of: dict[str, Inputs] = inputs_of
        ) -> None:
            inputs_of[layer.name].add(layer, inputs[0], sample, random)  # noqa: B023

        few.watch([replace(layer, smoothing=None) for layer in batch], visit)
        for layer in batch:
            recorded = inputs_of.pop(layer.name)
            if recorded.pieces:
                yield layer, recorded


def _gigabytes(layer: Layer, samples: int) -> float:
    """Compute the memory of the pieces of a layer's input."""
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
    """Round the weight of a layer, as a later pass might, unless it is rounded."""
    spec = layer.scheme.weight
    if spec is None or layer.rounded is not None:
        return layer
    return replace(layer, rounded=weight_scales(layer.matrix(), spec, "mse" if spec.format.bits < 7 else "minmax"))


def _every(layer: Layer) -> int:
    """Return the stride of the output channels that are computed; of a grouped convolution all are."""
    assert layer.weight is not None
    return 1 if layer.groups > 1 else max(1, len(layer.weight) // OUTPUTS)
