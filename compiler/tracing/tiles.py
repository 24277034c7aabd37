"""Turn the tiles of an autoencoder on where it computes in no other way: no file of a checkpoint says so."""

from __future__ import annotations

import warnings

from torch import nn

from diffc.compiler.errors import DiffcWarning


def turn_on(component: str, module: nn.Module) -> bool:
    """Turn tiles on for good, with a warning; return False where a component has none, or they are on already."""
    if getattr(module, "use_tiling", True) or not callable(getattr(module, "enable_tiling", None)):
        return False
    module.enable_tiling()  # type: ignore[operator]
    warnings.warn(f"{component} computes in tiles only: they are turned on", DiffcWarning, stacklevel=2)
    return True
