"""Rewrite programs. One technique per file; a recipe is a list of them, read from top to bottom."""

from diffc.compiler.recipe import optional
from diffc.passes.common_subexpressions import common_subexpressions
from diffc.passes.fuse_linear import fuse_linear
from diffc.passes.guidance_interval import guidance_interval
from diffc.passes.outline import outline
from diffc.passes.recognize_linear import recognize_linear
from diffc.passes.stage import stage
from diffc.passes.sum_spawned_noise import sum_spawned_noise

UNROLLED = (
    # Across time: from the pipeline's arithmetic to one linear for each step
    optional(recognize_linear),
    optional(fuse_linear),
    optional(sum_spawned_noise),
)
"""Bring linear arithmetic into ``linear``: the form in which guidance can be read off."""

OUTLINED = (
    # Arithmetic that is not linear becomes small graphs
    optional(outline),
    # Work that the pipeline repeats in every step is done once
    optional(common_subexpressions),
)
"""Leave no operators of ATen."""

NORMAL_FORM = (*UNROLLED, *OUTLINED)
"""Leave calls of graphs and built-ins only: the operations that the runtime interprets."""

__all__ = ["NORMAL_FORM", "OUTLINED", "UNROLLED", "guidance_interval", "stage"]
