"""Learn whether each weight is rounded up or down, so that the output of a layer or of a block comes out right.

Each weight lies between two neighbouring values of its number format: what follows holds for integer and for
floating-point formats. The fraction h in [0, 1] by which it is rounded up is learned; a regulariser pushes each h to an
end, gently at first. The result is compared with rounding to nearest, and never worse.

Papers: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020 (the rectified sigmoid
        and the regulariser); Li et al., "BRECQ", ICLR 2021 (blocks); Chen et al., "FP4DiT", 2025 (floating point).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from diffc.compiler.graph.body import body_of
from diffc.compiler.quantization.blocks import Block, boundaries, find_blocks
from diffc.compiler.quantization.formats import spread
from diffc.compiler.quantization.hessians import by_block, hessians
from diffc.compiler.quantization.layer import Layer, Rounded
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.scales import weight_scales

STRETCH = 1.2
"""The width of the sigmoid, from -0.1 to 1.1, so that 0 and 1 can be reached."""

WARM_UP = 0.2
"""The part of the iterations without a regulariser."""

SHARPEST, BLUNTEST = 20.0, 2.0
"""The regulariser's exponent at first, when it acts near the ends only, and at last."""

REGULARISER = 100.0
"""The weight of the regulariser relative to the error of rounding to nearest.

The regulariser is 1 where all weights are half up. Of weights from 0.1 to 300 the larger gave the smaller error, up to
100: a fraction that is undecided at the end is lost in rounding.
"""

Feeds = Sequence[tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Learning:
    """Hold the iterations and the rate of learning, and the weight of each layer's loss relative to the block's."""

    iterations: int
    rate: float
    layers: float = 0.0
    seed: int = 0


class Soft:
    """Hold a softly rounded weight: the values of the format below it, and the learned fraction of each."""

    def __init__(self, layer: Layer) -> None:
        spec = layer.scheme.weight
        assert spec is not None
        self.layer, self.spec, self.weight = layer, spec, layer.matrix()
        self.nearest = weight_scales(self.weight, spec, "mse")
        start = self.nearest
        scale = start.scale if start.outer is None else start.scale * start.outer.reshape(-1, 1)
        self.scale = spread(scale, self.weight.shape, spec.group)
        self.zero = 0.0 if start.zero is None else spread(start.zero, self.weight.shape, spec.group)
        exact = self.weight / self.scale + self.zero
        self.step = spec.format.spacing(exact)
        self.below = (exact / self.step).floor() * self.step
        up = (exact - self.below) / self.step
        margin = (STRETCH - 1) / 2
        self.learned = -torch.log(STRETCH / (up + margin) - 1)
        self.learned.requires_grad_(True)

    def up(self) -> torch.Tensor:
        """Return the fraction by which each weight is rounded up: a stretched sigmoid, clipped to [0, 1]."""
        return (torch.sigmoid(self.learned) * STRETCH - (STRETCH - 1) / 2).clamp(0, 1)

    def value(self, up: torch.Tensor) -> torch.Tensor:
        """Return the weight rounded up by fractions."""
        return (self._clamped(self.below + self.step * up) - self.zero) * self.scale

    def hard(self) -> Rounded:
        """Round each weight to the nearer end."""
        up = (self.learned.detach() > 0).float()
        return replace(self.nearest, quantized=self.spec.format.encode(self._clamped(self.below + self.step * up)))

    def _clamped(self, values: torch.Tensor) -> torch.Tensor:
        return values.clamp(self.spec.format.lowest, self.spec.format.highest)


Error = Callable[[Sequence[torch.Tensor], int | None], torch.Tensor]
"""The squared error of weights, in the sample of an iteration, or in all samples where that is None."""


def reconstruct(plan: Plan, learning: Learning, *, blocks: bool, windows: int, memory: float) -> Plan:
    """Round the weights of linear layers and convolutions that are not rounded and that the samples reach.

    If ``blocks``, the layers of a residual block are learned together. Others are learned alone, from ``windows`` of
    their input. ``memory`` is in gigabytes.
    """

    def is_open(layer: Layer) -> bool:
        return layer.kind in ("linear", "conv") and layer.scheme.weight is not None and layer.rounded is None

    in_blocks = find_blocks(plan, is_open) if blocks else []
    rounded = dict[str, Rounded]()
    for block, feeds in boundaries(plan, in_blocks, memory):
        rounded |= reconstruct_block(block, feeds, learning)
    alone = [layer for layer in plan.layers if is_open(layer) and layer.name not in rounded]
    for layer, hessian in hessians(plan, alone, windows=windows, quantized=False, memory=memory):
        rounded[layer.name] = reconstruct_layer(layer, hessian, learning)
    return plan.mapped(lambda layer: replace(layer, rounded=rounded[layer.name]), lambda layer: layer.name in rounded)


def reconstruct_layer(layer: Layer, hessian: torch.Tensor, learning: Learning) -> Rounded:
    """Learn to round one layer from the Hessian of its inputs, which determines the error of its output."""
    soft = Soft(layer)

    def error(values: Sequence[torch.Tensor], _: int | None) -> torch.Tensor:
        difference = by_block(layer, values[0] - soft.weight)
        return ((difference @ hessian) * difference).sum()

    return _learned([soft], error, learning)[0]


def reconstruct_block(block: Block, feeds: Feeds, learning: Learning) -> dict[str, Rounded]:
    """Learn to round the layers of a block from its inputs in each sample; map their names to rounded weights."""
    module = block.module(body_of(block.graph), watched=learning.layers > 0)
    softs = [Soft(layer) for layer in block.layers.values()]
    with torch.no_grad():
        exact = [soft.layer.merged(soft.weight) for soft in softs]
        targets = [module(*inputs, *exact) for inputs in feeds]
    order = torch.randint(len(feeds), (learning.iterations,), generator=torch.Generator().manual_seed(learning.seed))

    def of_sample(weights: Sequence[torch.Tensor], at: int) -> torch.Tensor:
        outputs = module(*feeds[at], *weights)
        first, *others = ((a - b).square().mean() for a, b in zip(outputs, targets[at], strict=True))
        return torch.stack([first, *(learning.layers * loss for loss in others)]).sum()

    def error(values: Sequence[torch.Tensor], iteration: int | None) -> torch.Tensor:
        weights = [soft.layer.merged(value) for soft, value in zip(softs, values, strict=True)]
        if iteration is not None:
            return of_sample(weights, int(order[iteration]))
        return torch.stack([of_sample(weights, at) for at in range(len(feeds))]).mean()

    learned = _learned(softs, error, learning)
    return {soft.layer.name: rounded for soft, rounded in zip(softs, learned, strict=True)}


def _learned(softs: Sequence[Soft], error: Error, learning: Learning) -> list[Rounded]:
    """Learn and round; return rounding to nearest where that has the smaller error."""
    nearest = [soft.nearest for soft in softs]
    with torch.no_grad():
        before = float(error([soft.nearest.value(soft.spec) for soft in softs], None))
    if before == 0.0:
        return nearest
    optimizer = torch.optim.Adam([soft.learned for soft in softs], lr=learning.rate)
    count = sum(soft.learned.numel() for soft in softs)
    for iteration in range(learning.iterations):
        ups = [soft.up() for soft in softs]
        loss = error([soft.value(up) for soft, up in zip(softs, ups, strict=True)], iteration) / before
        exponent = _exponent(iteration / learning.iterations)
        if exponent is not None:
            undecided = torch.stack([(1 - (2 * up - 1).abs() ** exponent).sum() for up in ups]).sum() / count
            loss = loss + REGULARISER * undecided
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    learned = [soft.hard() for soft in softs]
    with torch.no_grad():
        after = float(error([rounded.value(soft.spec) for soft, rounded in zip(softs, learned, strict=True)], None))
    return learned if math.isfinite(after) and after < before else nearest


def _exponent(time: float) -> float | None:
    """Return the regulariser's exponent at a time in [0, 1]; None before it acts."""
    if time < WARM_UP:
        return None
    return SHARPEST + (BLUNTEST - SHARPEST) * (time - WARM_UP) / (1 - WARM_UP)
