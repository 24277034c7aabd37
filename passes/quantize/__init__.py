"""Quantize: one technique per file, each of which rewrites a plan and composes with the others.

A recipe holds the specs of a precision for the layers of the denoiser and of the other components, and the techniques
in order. A back end replaces the specs that its engine does not compute.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from diffc.compiler.quantization.plan import Plan
from diffc.compiler.recipe import Pass, optional
from diffc.passes.quantize.adaround import adaround
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.decoupled_error_correction import decoupled_error_correction
from diffc.passes.quantize.eda_dm import eda_dm
from diffc.passes.quantize.fp_quant import fp_quant
from diffc.passes.quantize.gptq import gptq
from diffc.passes.quantize.keep_first_last import keep_first_last
from diffc.passes.quantize.ptq4dm import ptq4dm
from diffc.passes.quantize.q_diffusion import q_diffusion
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.passes.quantize.smoothquant import smoothquant
from diffc.passes.quantize.static_scales import static_scales
from diffc.passes.quantize.svdquant import svdquant
from diffc.passes.quantize.tfmq_dm import tfmq_dm
from diffc.passes.quantize.vidit_q import vidit_q

TECHNIQUES: Mapping[str, Callable[..., Plan]] = MappingProxyType(
    {
        technique.__name__: technique
        for technique in (
            # Which steps are calibrated on, and which layers there are
            ptq4dm,
            q_diffusion,
            # Which layers have more bits
            keep_first_last,
            # Where outliers go
            smoothquant,
            vidit_q,
            svdquant,
            # Which scales differ from step to step, or from token to token
            tfmq_dm,
            static_scales,
            # Which number format
            fp_quant,
            # How wide a scale is
            calibrate_ranges,
            # How a weight is rounded
            round_to_nearest,
            gptq,
            adaround,
            eda_dm,
            # The error that rounding leaves
            decoupled_error_correction,
        )
    }
)
"""The techniques by their names; ``--quant`` takes them in the order in which they run."""

FORMER_NAMES: Mapping[str, str] = MappingProxyType({"keep_sensitive": keep_first_last.__name__})
"""Names that techniques had, which ``--quant`` and recipe files still take."""

REST: tuple[Pass[Plan], ...] = (optional(calibrate_ranges), optional(round_to_nearest))
"""Run after every recipe: ranges and weights that its techniques left open."""


@dataclass(frozen=True)
class Recipe:
    """Describe how weights and activations of each kind of layer are quantized, and by which techniques.

    ``linear`` and ``conv`` are a weight's and an activation's specs, in the denoiser, and ``attention`` those of the
    operands of its two products; ``other`` are those of the weights of linears and convolutions in other components,
    whose activations stay in float: they run once for each image.
    """

    linear: tuple[str, str]
    conv: tuple[str, str]
    other: tuple[str, str] = ("int8:group=128:scale=float16", "int8:channel:scale=float16")
    techniques: tuple[Pass[Plan], ...] = (round_to_nearest,)
    attention: tuple[str, str] = ("float", "float")


OTHER_W4 = ("int4:group=32:scale=float16", "int8:channel:scale=float16")
"""The other components where the denoiser's weights have four bits."""

_OF_PRECISIONS: dict[str, Recipe] = {
    "w8a8": Recipe(
        ("int8:channel:scale=float16", "int8:token"),
        ("int8:channel:scale=float16", "uint8:tensor"),
        techniques=(
            optional(partial(keep_first_last, in_float=True)),
            optional(partial(smoothquant, samples=8)),
            optional(calibrate_ranges),
            partial(round_to_nearest, by="minmax"),
        ),
    ),
    "w4a16": Recipe(
        ("int4:group=32", "float"),
        ("int4:group=32", "float"),
        OTHER_W4,
        (optional(keep_first_last), gptq),
    ),
    "w4a8": Recipe(
        ("int4:group=64:scale=uint4", "int8:token"),
        ("int4:group=64:scale=uint4", "uint8:tensor"),
        OTHER_W4,
        (
            optional(partial(keep_first_last, in_float=True)),
            optional(smoothquant),
            optional(calibrate_ranges),
            gptq,
        ),
    ),
    "w4a4": Recipe(
        ("int4:group=32", "int4:group=32:dynamic"),
        ("int4:group=32", "uint4:tensor"),
        OTHER_W4,
        (
            optional(partial(keep_first_last, in_float=True)),
            optional(svdquant),
            optional(calibrate_ranges),
            gptq,
        ),
    ),
    "fp8": Recipe(
        ("e4m3:channel", "e4m3:token"),
        ("e4m3:channel", "e4m3:tensor"),
        techniques=(optional(calibrate_ranges), partial(round_to_nearest, by="minmax")),
    ),
    "fp4": Recipe(
        ("nvfp4", "nvfp4:dynamic"),
        ("nvfp4", "e4m3:tensor"),
        OTHER_W4,
        (
            optional(partial(keep_first_last, in_float=True)),
            optional(svdquant),
            optional(calibrate_ranges),
            gptq,
        ),
    ),
}
_SEVEN_BITS = replace(
    _OF_PRECISIONS["w8a8"],
    linear=("int7:channel:scale=float16", "int8:token"),
    conv=("int7:channel:scale=float16", "uint8:tensor"),
)
"""Weights of seven bits, stored in eight: CPUs of x86 multiply them exactly, with VNNI or without (decision 13)."""

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        **_OF_PRECISIONS,
        "w8a8_onnx_runtime": _SEVEN_BITS,
        "w8a8_openvino": replace(
            _SEVEN_BITS,
            techniques=(
                optional(partial(keep_first_last, in_float=True)),
                optional(partial(smoothquant, samples=8)),
                optional(static_scales),
                partial(round_to_nearest, by="minmax"),
            ),
        ),
    }
)
"""The recipes by name; a row of `diffc.runtime.precisions` names one, and a back end may name another for its row."""

EMBEDDING = "int8:channel"
"""How tables of embeddings are stored."""

__all__ = ["EMBEDDING", "FORMER_NAMES", "RECIPES", "REST", "TECHNIQUES", "Recipe"]
