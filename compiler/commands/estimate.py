"""Estimate memory, disk and time of a build, from the shapes of the weights alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from diffc.compiler.backends.backend import find_backend
from diffc.compiler.backends.target import parse_target
from diffc.compiler.bundle.disk_space import bytes_needed, bytes_of_weights
from diffc.compiler.checkpoint.load import load
from diffc.runtime.memory import peak_bytes

SECONDS_PER_TENSOR = 0.1
SECONDS_PER_BYTE = 19e-9
"""A line through builds of SD 1.5 (1130 tensors, 4.0 GB, 195 s) and FLUX.1-dev (1613, 24.8 GB, 646 s) on two cores."""


def estimate(
    source: Path | str,
    target: str = "ort-fp32",
    *,
    ip_adapter: Path | str | None = None,
    component_files: Mapping[str, Path | str] = MappingProxyType({}),
    online: bool = False,
) -> dict[str, Any]:
    """Return the ``parameters`` of each component, and estimates for a build with one number of steps.

    ``bundle_bytes`` counts all weights as the target stores them; a bundle leaves out those that nothing reads, such
    as an autoencoder's encoder, and adds graphs. ``disk_bytes`` is the space that `build` requires, ``free_bytes`` that
    of this folder. ``memory_bytes`` is the peak memory of loading, measured now: a build takes that and more.
    ``seconds`` is a line through two builds on two cores without a build cache, right in its order of magnitude only.
    Raises `LoadError` and `TargetError`.
    """
    parsed = parse_target(target)
    bytes_per_weight = find_backend(parsed.backend).bytes_per_weight(parsed.precision)
    pipeline: Any = load(
        source, ip_adapter=ip_adapter, component_files=component_files, online=online, lazy_weights=True
    )
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    size = bytes_of_weights(modules.values(), bytes_per_weight)
    tensors = sum(len(list(module.parameters())) for module in modules.values())
    return {
        "source": str(source),
        "target": str(parsed),
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
        "bundle_bytes": size,
        "disk_bytes": bytes_needed(modules.values(), bytes_per_weight),
        "free_bytes": shutil.disk_usage(".").free,
        "memory_bytes": peak_bytes(),
        "seconds": SECONDS_PER_TENSOR * tensors + SECONDS_PER_BYTE * size,
    }
