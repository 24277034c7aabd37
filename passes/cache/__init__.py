"""Reuse features of earlier steps: one system per file, each a schedule over features that it finds by structure."""

from collections.abc import Callable, Mapping
from typing import Any

from diffc.passes.cache.a_sdm import a_sdm
from diffc.passes.cache.auto import auto
from diffc.passes.cache.cachequant import cachequant
from diffc.passes.cache.deepcache import deepcache
from diffc.passes.cache.delta_dit import delta_dit
from diffc.passes.cache.faster_diffusion import faster_diffusion
from diffc.passes.cache.profiling_dit import profiling_dit

CACHES: Mapping[str, Callable[..., Any]] = {
    cache.__name__.replace("_", "-"): cache
    for cache in (
        # What a UNet has inside of a skip connection
        deepcache,
        # All but what a UNet has behind its skip connections
        faster_diffusion,
        # What blocks of a transformer add
        delta_dit,
        profiling_dit,
        # Either of them, where the trajectory says
        cachequant,
        # What residual blocks give, in any denoiser
        a_sdm,
        # What costs least of all this, measured
        auto,
    )
}
"""The caches by the names that ``--cache`` takes; they give programs, and `auto` what it measured too."""

__all__ = ["CACHES"]
