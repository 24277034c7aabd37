"""Reuse features of earlier steps: one system per file, each a schedule over features that it finds by structure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from enum import auto as unique
from types import MappingProxyType
from typing import Any

from diffc.passes.cache.a_sdm import a_sdm
from diffc.passes.cache.auto import auto
from diffc.passes.cache.cachequant import cachequant
from diffc.passes.cache.deepcache import deepcache
from diffc.passes.cache.delta_dit import delta_dit
from diffc.passes.cache.faster_diffusion import faster_diffusion
from diffc.passes.cache.profiling_dit import profiling_dit


class Need(Enum):
    """Name an argument that a cache takes besides the programs."""

    CALIBRATOR = unique()
    """A function that returns the calibration of a program."""

    FINER_PROGRAM = unique()
    """The first program with twice as many steps."""


@dataclass(frozen=True)
class FeatureCache:
    """Hold a cache and its needs, which are its arguments after the programs."""

    apply: Callable[..., Any]
    needs: tuple[Need, ...] = ()

    @property
    def name(self) -> str:
        """Return the name that ``--cache`` takes."""
        return self.apply.__name__.replace("_", "-")


CACHES: Mapping[str, FeatureCache] = MappingProxyType(
    {
        cache.name: cache
        for cache in (
            # The levels of a UNet inside of a skip connection
            FeatureCache(deepcache),
            # The encoder of a UNet
            FeatureCache(faster_diffusion),
            # The residuals of transformer blocks
            FeatureCache(delta_dit),
            FeatureCache(profiling_dit, (Need.CALIBRATOR,)),
            # Either of them, in steps chosen by the trajectory
            FeatureCache(cachequant, (Need.CALIBRATOR,)),
            # The outputs of residual blocks, in any denoiser
            FeatureCache(a_sdm),
            # The cheapest of all features, measured
            FeatureCache(auto, (Need.CALIBRATOR, Need.FINER_PROGRAM)),
        )
    }
)
"""The caches by the names that ``--cache`` takes; they return programs, and `auto` its trials too."""

__all__ = ["CACHES", "FeatureCache", "Need"]
