"""Learn for each weight whether it is rounded up or down, so that the outputs of layers or residual blocks stay near.

Paper: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020,
       https://arxiv.org/abs/2004.10568; by blocks as Li et al., "BRECQ: Pushing the Limit of Post-Training
       Quantization by Block Reconstruction", ICLR 2021; in floating point as Chen et al., "FP4DiT", 2025. A
       layer is learned from the Hessian of its inputs, which holds the error over all samples exactly. Inputs,
       and in a block activations, are those of the model in float.

Before (weights int4:channel):
    y = linear(x, dequantize(nearest, scale, int4))

After (iterations=60):
    y = linear(x, dequantize(quantized, scale, int4))

where each value of ``quantized`` is one of the two beside ``w / scale``, and ``nearest`` the nearer one.
"""

from __future__ import annotations

from dataclasses import replace

from diffc.compiler.errors import PassError
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.quantization.reconstruction import Learning, reconstruct
from diffc.compiler.quantization.refusals import UNREACHED, against_rounding


def adaround(
    plan: Plan,
    *,
    by: str = "layer",
    samples: int = 32,
    iterations: int = 500,
    rate: float = 0.05,
    windows: int = 8192,
    memory: float = 1.0,
) -> Plan:
    """Round the weights of linear layers and convolutions that no pass before has rounded and that samples reach.

    ``samples`` of each graph are run. With ``by="block"`` an iteration is of one sample; layers that are in no block
    are learned by themselves, from ``windows`` of their input. Recorded inputs and outputs take ``memory`` gigabytes at
    a time.
    """
    if by not in ("layer", "block"):
        raise PassError(f"adaround: {by!r} is no part to reconstruct", fix="use layer or block")
    few = replace(plan, calibration=plan.calibration.few(samples))
    learned = reconstruct(few, Learning(iterations, rate), blocks=by == "block", windows=windows, memory=memory)
    rounded = {layer.name for layer in learned.layers if layer.rounded is not None}
    refused = plan.refused(
        "adaround", lambda layer: against_rounding(layer) or ("" if layer.name in rounded else UNREACHED)
    )
    return replace(learned, calibration=plan.calibration, refusals=refused.refusals)
