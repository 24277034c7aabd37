"""The precisions of targets, one row each: the types of weights and arithmetic, and the GPUs that compute them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Describe one precision of targets, such as ``w4a8`` of ``ort-w4a8``.

    ``bytes_per_weight`` are those of a large weight in a bundle's graphs, stored as ``storage`` where it is not
    quantized, and ``engine_bytes_per_weight`` those in an engine that is built ahead. ``gpu`` and ``cpu`` are the types
    in which engines that follow the target compute all that is not quantized. ``arch`` is the least architecture of a
    GPU that computes it (none: no GPU of ours does), ``recipe`` the name of its recipe in `diffc.passes.quantize`
    (none: it is not quantized).
    """

    name: str
    bytes_per_weight: float
    engine_bytes_per_weight: float
    storage: str = "float32"
    gpu: str = "float16"
    cpu: str = "bfloat16"
    arch: str = ""
    recipe: str = ""


PRECISIONS: Mapping[str, Precision] = {
    precision.name: precision
    for precision in (
        Precision("fp32", 4, 4, gpu="float32", cpu="float32", arch="sm80"),
        Precision("fp16", 2, 2, storage="float16", cpu="float32", arch="sm75"),
        Precision("bf16", 2, 2, storage="bfloat16", gpu="bfloat16", arch="sm80"),
        Precision("w8a8", 1, 1.2, arch="sm75", recipe="w8a8"),
        Precision("w4a16", 0.6, 0.9, arch="sm80", recipe="w4a16"),
        Precision("w4a8", 0.6, 0.9, arch="sm80", recipe="w4a8"),
        Precision("w4a4", 0.6, 0.9, recipe="w4a4"),
        Precision("fp8", 1, 1.2, arch="sm89", recipe="fp8"),
        Precision("fp4", 0.6, 0.9, arch="sm120", recipe="fp4"),
    )
}
"""The rows. A back end names those that it supports, changed where its engine differs, or brings rows of its own."""
