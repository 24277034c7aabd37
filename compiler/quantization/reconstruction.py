"""Learn whether each weight is rounded up or down, so that the output of a layer or of a block comes out right.

Each weight lies between two numbers of its grid, whose distance is the grid's spacing there: what follows holds for
integers and for floating-point grids. How far up it is rounded, h in [0, 1], is learned; a regulariser pushes each h
to an end, gently at first. What is learned is measured against rounding to nearest, and never worse.

Papers: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020 (the rectified sigmoid
        and the regulariser); Li et al., "BRECQ", ICLR 2021 (blocks); Chen et al., "FP4DiT", 2025 (the grid's spacing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from diffc.compiler.graph.body import body_of
from diffc.compiler.quantization.blocks import Block, boundaries, find_blocks
from diffc.compiler.quantization.formats import spread
from diffc.compiler.quantization.hessians import by_block, grams
from diffc.compiler.quantization.layer import Layer, Rounded
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.scales import weight_scales

STRETCH = 1.2
"""How wide the sigmoid is, so that its ends can be reached: from -0.1 to 1.1."""

WARM_UP = 0.2
"""The part of the iterations without a regulariser."""

SHARPEST, BLUNTEST = 20.0, 2.0
"""The regulariser's exponent at first, when only what is near an end is pushed to it, and at last."""

REGULARISER = 100.0
"""What the regulariser, which is 1 where all weights are half up, weighs against the error of rounding to nearest.

Of 0.1 to 300 the larger served the better, up to 100: what is undecided at the end is lost.
"""

Feeds = Sequence[tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Learning:
    """Say how long to learn and how fast, and what the outputs of single layers weigh in the error of a block."""

    iterations: int
    rate: float
    layers: float = 0.0
    seed: int = 0


class Soft:
    """Round a layer's weight partly up: the grid's numbers below it, and what is learned of each."""

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
        """Give how far up each weight is rounded: a sigmoid that was stretched, and cut off at 0 and 1."""
        return (torch.sigmoid(self.learned) * STRETCH - (STRETCH - 1) / 2).clamp(0, 1)

    def value(self, up: torch.Tensor) -> torch.Tensor:
        """Give the weight that is so far rounded up."""
        grid = self.spec.format
        return ((self.below + self.step * up).clamp(grid.lowest, grid.highest) - self.zero) * self.scale

    def hard(self) -> Rounded:
        """Round each weight to the end that it is nearer to."""
        grid, up = self.spec.format, (self.learned.detach() > 0).float()
        return replace(self.nearest, codes=grid.encode((self.below + self.step * up).clamp(grid.lowest, grid.highest)))


Error = Callable[[Sequence[torch.Tensor], int | None], torch.Tensor]
"""The squared error that weights make, in the sample of an iteration, or in all where that is None."""


def reconstruct(plan: Plan, learning: Learning, *, blocks: bool, windows: int, memory: float) -> Plan:
    """Round the weights of linear layers and convolutions that are not rounded and that the samples reach.

    Layers are learned in blocks, but for those that are in none, or each by itself, from ``windows`` of their input.
    """

    def is_wanted(layer: Layer) -> bool:
        return layer.kind in ("linear", "conv") and layer.scheme.weight is not None and layer.rounded is None

    found = find_blocks(plan, is_wanted) if blocks else []
    rounded = dict[str, Rounded]()
    for block, feeds in boundaries(plan, found, memory):
        rounded |= reconstruct_block(block, feeds, learning)
    alone = [layer for layer in plan.layers if is_wanted(layer) and layer.name not in rounded]
    for layer, gram in grams(plan, alone, windows=windows, quantized=False, memory=memory):
        rounded[layer.name] = reconstruct_layer(layer, gram, learning)
    return plan.mapped(lambda layer: replace(layer, rounded=rounded[layer.name]), lambda each: each.name in rounded)


def reconstruct_layer(layer: Layer, gram: torch.Tensor, learning: Learning) -> Rounded:
    """Learn how to round one layer from the Gram matrix of its inputs, which knows the error of its output."""
    soft = Soft(layer)

    def error(values: Sequence[torch.Tensor], _: int | None) -> torch.Tensor:
        difference = by_block(layer, values[0] - soft.weight)
        return ((difference @ gram) * difference).sum()

    return _learned([soft], error, learning)[0]


def reconstruct_block(block: Block, feeds: Feeds, learning: Learning) -> dict[str, Rounded]:
    """Learn how to round the layers of a block, given what reaches it in each sample; map their names to what is."""
    module = block.module(body_of(block.graph), watched=learning.layers > 0)
    softs = [Soft(layer) for layer in block.layers.values()]
    with torch.no_grad():
        exact = [soft.layer.merged(soft.weight) for soft in softs]
        wanted = [module(*given, *exact) for given in feeds]
    order = torch.randint(len(feeds), (learning.iterations,), generator=torch.Generator().manual_seed(learning.seed))

    def of_sample(weights: Sequence[torch.Tensor], at: int) -> torch.Tensor:
        made = module(*feeds[at], *weights)
        first, *others = ((a - b).square().mean() for a, b in zip(made, wanted[at], strict=True))
        return torch.stack([first, *(learning.layers * each for each in others)]).sum()

    def error(values: Sequence[torch.Tensor], iteration: int | None) -> torch.Tensor:
        weights = [soft.layer.merged(value) for soft, value in zip(softs, values, strict=True)]
        if iteration is not None:
            return of_sample(weights, int(order[iteration]))
        return torch.stack([of_sample(weights, at) for at in range(len(feeds))]).mean()

    found = _learned(softs, error, learning)
    return {soft.layer.name: rounded for soft, rounded in zip(softs, found, strict=True)}


def _learned(softs: Sequence[Soft], error: Error, learning: Learning) -> list[Rounded]:
    """Learn, round, and keep what is better of that and rounding to nearest."""
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
    found = [soft.hard() for soft in softs]
    with torch.no_grad():
        after = float(error([rounded.value(soft.spec) for soft, rounded in zip(softs, found, strict=True)], None))
    return found if math.isfinite(after) and after < before else nearest


def _exponent(time: float) -> float | None:
    """Give the regulariser's exponent at a time in [0, 1]; None before it acts."""
    if time < WARM_UP:
        return None
    return SHARPEST + (BLUNTEST - SHARPEST) * (time - WARM_UP) / (1 - WARM_UP)
