"""Gather statistics of activations over calibration samples, in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

BINS = 4096
"""How finely a histogram divides its range."""

COUNTED = 2**18
"""About how many values of a large tensor are counted: fewer than twice that."""

CONSTANT = 1e-9
"""A variance below this part of the mean square counts as zero."""


@dataclass
class Histogram:
    """Count values in equal bins over [-limit, limit]; the limit doubles when a larger value comes.

    ``low`` and ``high`` are the ends of all values, also of those that are not counted.
    """

    limit: float = 0.0
    counts: torch.Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, x: torch.Tensor) -> None:
        """Count the values of a tensor, or an evenly spaced subset."""
        low, high = (float(bound) for bound in x.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high, 1e-30)
        if not self.limit:
            self.limit = largest
        while self.limit < largest:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(pairs, (BINS // 4, BINS // 4))
            self.limit *= 2
        self.counts += torch.histc(_subset(x).float(), BINS, -self.limit, self.limit)

    def merged(self, second: Histogram) -> Histogram:
        """Return the histogram of the values of both."""
        wide, narrow = (self, second) if self.limit >= second.limit else (second, self)
        total = Histogram(wide.limit, wide.counts.clone(), min(self.low, second.low), max(self.high, second.high))
        if narrow.limit:
            at = ((narrow.centres() + total.limit) / (2 * total.limit) * BINS).long().clamp(0, BINS - 1)
            total.counts.index_add_(0, at, narrow.counts)
        return total

    def centres(self) -> torch.Tensor:
        """Return the middle of each bin, [bins]."""
        return ((torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS * 2 - 1) * self.limit


def _subset(x: torch.Tensor) -> torch.Tensor:
    """Return a strided subset of a large tensor; the stride divides no axis, so that all channels occur."""
    stride = max(1, x.numel() // COUNTED)
    while math.gcd(stride, x.numel()) > 1:
        stride += 1
    return x.reshape(-1)[::stride]


def largest_of_channels(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the largest magnitude of each channel, [channels]; ``axis`` is the channels'."""
    others = [at for at in range(x.dim()) if at != axis % x.dim()]
    return torch.maximum(-x.amin(others), x.amax(others)).float()


@dataclass
class Statistics:
    """Hold statistics of one input of a layer: a histogram of each step, and the largest magnitude of each channel.

    ``axis`` is the channels'. ``largest`` is [steps, channels].
    """

    steps: int
    axis: int
    histograms: list[Histogram] = field(init=False)
    largest: torch.Tensor | None = None
    count: int = 0

    def __post_init__(self) -> None:
        self.histograms = [Histogram() for _ in range(self.steps)]

    def add(self, x: torch.Tensor, step: int) -> None:
        """Add the values of one call in a step."""
        self.histograms[step].add(x)
        largest = largest_of_channels(x, self.axis)
        if self.largest is None:
            self.largest = torch.zeros(self.steps, len(largest))
        torch.maximum(self.largest[step], largest, out=self.largest[step])
        self.count += 1

    def all(self) -> Histogram:
        """Return the histogram of all steps."""
        total = Histogram()
        for histogram in self.histograms:
            total = total.merged(histogram)
        return total


@dataclass
class Lines:
    """Fit the line y = factor * x + term through pairs of values by least squares, for each channel.

    ``sums`` [4, channels] are those of x, y, x * x and x * y over ``count`` pairs of each.
    """

    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(4, 1, dtype=torch.float64))
    count: int = 0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add pairs [channels, pairs]."""
        self.sums = self.sums + torch.stack([each.sum(1, dtype=torch.float64) for each in (x, y, x * x, x * y)])
        self.count += x.shape[1]

    def factor(self) -> torch.Tensor:
        """Return the slope of each channel's line; it is 1 where x does not vary."""
        x, y, xx, xy = self.sums
        variance: torch.Tensor = xx - x * x / self.count
        covariance: torch.Tensor = xy - x * y / self.count
        return torch.where(variance > CONSTANT * xx, covariance / variance, 1.0)

    def term(self, factor: torch.Tensor) -> torch.Tensor:
        """Return the term to add to x times a factor, so that the mean is that of y."""
        x, y, _, _ = self.sums
        term: torch.Tensor = (y - factor * x) / self.count
        return term
