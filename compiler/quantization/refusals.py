"""Record why a technique leaves a layer alone: an empty reason is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from diffc.compiler.quantization.layer import Layer


@dataclass(frozen=True)
class Refusal:
    """Hold the reason why a technique left a layer alone."""

    technique: str
    layer: str
    reason: str


UNREACHED = "no calibration sample reaches it"
ROUNDED = "its weight is rounded already"
RANGED = "its ranges are chosen already"
FLOAT_WEIGHT = "its weight stays in float"


def against_weighted(layer: Layer) -> str:
    """Return why a layer has no weight that a technique for linear layers and convolutions could quantize."""
    if layer.kind not in ("linear", "conv"):
        return f"it is {layer.kind}, not a linear layer or a convolution"
    return FLOAT_WEIGHT if layer.scheme.weight is None else ""


def against_rounding(layer: Layer) -> str:
    """Return why the weight of a layer is not to be rounded by a technique for linear layers and convolutions."""
    return against_weighted(layer) or (ROUNDED if layer.rounded is not None else "")


def against_smoothing(layer: Layer) -> str:
    """Return why the channels of a layer are not to be smoothed: weight and input must be quantized and undecided."""
    reasons = {
        "its convolution is grouped": layer.groups > 1,
        "its activation stays in float": layer.scheme.activation is None,
        "its channels are smoothed already": layer.smoothing is not None,
        "it has a low-rank branch already": layer.branch is not None,
        RANGED: layer.low is not None,
    }
    return against_rounding(layer) or next((reason for reason, holds in reasons.items() if holds), "")


def refusals(technique: str, layers: Iterable[Layer], reason: Callable[[Layer], str]) -> tuple[Refusal, ...]:
    """Return the refusals of a technique for those of the layers that there is a reason for."""
    reasons = ((layer.name, reason(layer)) for layer in layers)
    return tuple(Refusal(technique, name, text) for name, text in reasons if text)
