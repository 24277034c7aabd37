"""Round every weight to the nearest value of its number format: the baseline of all techniques.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        CVPR 2018, section 2, https://arxiv.org/abs/1712.05877; scales by least squared error as in Banner et al.,
        "Post-training 4-bit Quantization of Convolution Networks for Rapid-Deployment", NeurIPS 2019.

Before (weights int4:channel):
    y = linear(x, w)

After:
    y = linear(x, dequantize(quantized, scale, int4))

where ``quantized`` is ``w / scale``, rounded.
"""

from __future__ import annotations

from dataclasses import replace

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.refusals import FLOAT_WEIGHT, ROUNDED
from diffc.compiler.quantization.scales import weight_scales


def round_to_nearest(plan: Plan, *, by: str = "mse") -> Plan:
    """Round the weights that no pass has rounded, with scales by the largest magnitude or the least squared error."""
    if by not in ("minmax", "mse"):
        raise PassError(f"round_to_nearest: {by!r} is no range method of weights", fix="use minmax or mse")

    def rounded(layer: Layer) -> Layer:
        assert layer.scheme.weight is not None
        return replace(layer, rounded=weight_scales(layer.matrix(), layer.scheme.weight, by))

    plan = plan.refused("round_to_nearest", _against)
    return plan.mapped(rounded, lambda layer: not _against(layer))


def _against(layer: Layer) -> str:
    """Return why a layer is not rounded; tables of embeddings are."""
    return FLOAT_WEIGHT if layer.scheme.weight is None else "" if layer.rounded is None else ROUNDED
