"""Hold one layer of a graph, and how it is quantized: its scheme, ranges, rounded weight and corrections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.graph.lazy_weights import read
from diffc.compiler.quantization.formats import Scheme, Spec, spread
from diffc.compiler.quantization.ops import dynamic_scale, fake_quantize, fake_quantize_groups, quantize_in_range

aten = torch.ops.aten


@dataclass(frozen=True)
class Site:
    """Point to an operator in a graph."""

    graph: str
    node: str


@dataclass(frozen=True)
class Rounded:
    """Hold a rounded weight: quantized values in its shape, as stored, and scales and zeros [rows] or [rows, groups].

    Where the scales are themselves rounded, ``outer`` is the scale of the scales: scale = outer * stored.
    """

    quantized: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    outer: torch.Tensor | None = None

    def value(self, spec: Spec) -> torch.Tensor:
        """Return the dequantized weight."""
        scale = self.scale if self.outer is None else self.scale * self.outer.reshape(-1, 1)
        offset = 0.0 if self.zero is None else spread(self.zero, self.quantized.shape, spec.group)
        return (spec.format.decode(self.quantized) - offset) * spread(scale, self.quantized.shape, spec.group)

    def thinned(self, every: int) -> Rounded:
        """Return one in ``every`` rows, from the first on."""
        parts = (self.quantized, self.scale, self.zero, self.outer)
        return Rounded(*(part if part is None or len(part) == 1 else part[::every] for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Layer:
    """Hold one layer: its weight, the sites that read it, its scheme, and the decisions of passes.

    ``low`` and ``high`` are the ranges of its inputs, [inputs, 1] or with step-indexed scales [inputs, steps], and
    ``bounds`` that of its output. ``smoothing`` [channels] multiplies the input, and divides the weight. ``branch`` is
    a pair of matrices [rank, channels * kernel] and [rows, rank], computed beside the weight and subtracted from it.
    ``shift`` [rows] is added to the output, as a part of the bias. ``options`` are the arguments of a convolution after
    its bias. The scheme of a ``requested`` layer is the user's.
    """

    name: str
    component: str
    kind: str
    sites: tuple[Site, ...]
    weight: torch.Tensor | None = None
    groups: int = 1
    options: tuple[Any, ...] = ()
    scheme: Scheme = Scheme()
    requested: bool = False
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    bounds: tuple[float, float] | None = None
    smoothing: torch.Tensor | None = None
    branch: tuple[torch.Tensor, torch.Tensor] | None = None
    rounded: Rounded | None = None
    shift: torch.Tensor | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}): {self.scheme}; {self.decided or 'nothing decided'}"

    @property
    def decided(self) -> str:
        """Describe the decisions of passes about the layer, in the order in which they act."""
        steps = 0 if self.low is None else self.low.shape[1]
        words = {
            "smoothing": self.smoothing is not None,
            "range" if steps == 1 else f"ranges of {steps} steps": self.low is not None,
            "rounded weight": self.rounded is not None,
            f"low-rank branch of {0 if self.branch is None else len(self.branch[0])}": self.branch is not None,
            "shift": self.shift is not None,
            "output range": self.bounds is not None,
        }
        return ", ".join(word for word, is_decided in words.items() if is_decided)

    @property
    def axis(self) -> int:
        """Return the axis of the input's channels."""
        return 1 if self.kind == "conv" else -1

    def matrix(self) -> torch.Tensor:
        """Return the weight that is to be rounded, as float32: smoothed, and without the low-rank branch."""
        assert self.weight is not None
        weight = read(self.weight).detach().float()
        if self.smoothing is not None:
            weight = weight / self.smoothing.reshape(1, -1, *[1] * (weight.dim() - 2))
        return weight if self.branch is None else weight - self._low_rank(weight.shape)

    def merged(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return the weight that alone acts as ``matrix`` does with smoothing and low-rank branch: undo `matrix`."""
        weight = matrix if self.branch is None else matrix + self._low_rank(matrix.shape)
        if self.smoothing is not None:
            weight = weight * self.smoothing.reshape(1, -1, *[1] * (weight.dim() - 2))
        return weight

    def thinned(self, every: int) -> Layer:
        """Return a layer that computes one in ``every`` outputs, from the first on."""
        if every == 1:
            return self
        assert self.weight is not None
        return replace(
            self,
            weight=read(self.weight).detach()[::every],
            branch=self.branch and (self.branch[0], self.branch[1][::every]),
            rounded=self.rounded and self.rounded.thinned(every),
            shift=None if self.shift is None else self.shift[::every],
        )

    def in_float(self) -> Layer:
        """Return the layer as it is in the float model."""
        return Layer(self.name, self.component, self.kind, self.sites, self.weight, self.groups, self.options)

    # The eager meaning of every field. `apply_plan` writes the same into graphs, and is tested against it.

    def apply(self, *inputs: Any, sample: Sample, bias: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        """Compute the output of the quantized layer, with the scales of a sample's step.

        ``inputs`` are those of the operator but for weight, bias and `options`: x, or the ids of an embedding, or the
        queries, keys, values and mask of attention, whose other ``options`` are named. A weight that is not rounded yet
        is `matrix`.
        """
        if self.kind == "attention":
            return self._attention(*inputs, **options)
        if self.scheme.weight is None or self.rounded is None:
            weight = self.matrix()
        else:
            weight = self.rounded.value(self.scheme.weight)
        if self.kind == "embedding":
            return weight[inputs[0]]
        x = self.smoothed(inputs[0])
        y = self._product(self.quantized(x, sample), weight, bias)
        if self.shift is not None:
            y = y + self.shift.reshape(-1, *[1] * (y.dim() - 2) if self.axis == 1 else [])
        if self.branch is not None:
            y = y + self._product(x, self._low_rank(weight.shape), None)
        if self.scheme.output is None or self.bounds is None:
            return y
        return quantize_in_range(y, self.scheme.output, *(torch.tensor(bound) for bound in self.bounds))

    def smoothed(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply the channels of an input by the smoothing, which the weight was divided by."""
        if self.smoothing is None:
            return x
        return x * self.smoothing.reshape(-1, *[1] * (x.dim() - 2) if self.axis == 1 else [])

    def quantized(self, x: torch.Tensor, sample: Sample, at: int = 0) -> torch.Tensor:
        """Return a smoothed input as the quantized layer reads it; as it is, where its range is not known."""
        spec = self.scheme.of_input(at)
        if spec is not None and spec.per == "group":
            x = fake_quantize_groups(x, str(spec))
        elif spec is not None and spec.when == "dynamic":
            scale = dynamic_scale(x, spec, x.dim(), lambda operator, *args: operator(*args))
            x = fake_quantize(x / scale, torch.ones(1), None, spec.format.name) * scale
        elif spec is not None and self.low is not None and self.high is not None:
            step = sample.nearest(self.low.shape[1])
            x = quantize_in_range(x, spec, self.low[at, step], self.high[at, step])
        return x

    def _attention(self, *args: Any, scale: float | None = None, **options: Any) -> torch.Tensor:
        attend: Callable[..., torch.Tensor] = aten.scaled_dot_product_attention.default
        q, k, v = (self._in_static_range(x, at) for at, x in enumerate(args[:3]))
        spec = self.scheme.probabilities
        if spec is None:
            return attend(q, k, v, *args[3:], scale=scale, **options)
        scores = q @ k.transpose(-2, -1) * (scale or q.shape[-1] ** -0.5)
        scores = scores if len(args) == 3 or args[3] is None else scores + args[3]
        return quantize_in_range(scores.softmax(-1), spec, torch.zeros(()), torch.ones(())) @ v

    def _in_static_range(self, x: torch.Tensor, at: int) -> torch.Tensor:
        spec = self.scheme.of_input(at)
        if spec is None or self.low is None or self.high is None:
            return x
        return quantize_in_range(x, spec, self.low[at, 0], self.high[at, 0])

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        operators = (aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
        y: torch.Tensor = operators[weight.dim() - 2](x, weight, bias, *self.options)
        return y

    def _low_rank(self, shape: torch.Size) -> torch.Tensor:
        assert self.branch is not None
        down, up = self.branch
        return (up @ down).reshape(shape)


def for_all_steps(layer: Layer) -> Layer:
    """Replace the step-indexed scales of a layer by one static scale, whose range is not chosen yet."""
    spec = layer.scheme.activation
    if spec is None or spec.when != "step":
        return layer
    return replace(layer, scheme=replace(layer.scheme, activation=replace(spec, when="static")), low=None, high=None)
