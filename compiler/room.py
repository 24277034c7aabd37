"""Say how much disk a build takes, and how much memory there is, before it takes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from diffc.compiler.stored import SMALL

OVERHEAD = 64 << 20
"""Bytes for graphs, tokenizers and tables."""


def bytes_needed(modules: Iterable[nn.Module], bytes_per_weight: float) -> int:
    """Say what a bundle of the modules takes at most."""
    return bytes_of_weights(modules, bytes_per_weight) + OVERHEAD


def bytes_of_weights(modules: Iterable[nn.Module], bytes_per_weight: float) -> int:
    """Add up the weights of the modules, each tied one once, as a target stores them."""
    tensors = (t for module in modules for t in module.state_dict(keep_vars=True).values())
    weights = list[torch.Tensor]({id(tensor): tensor for tensor in tensors}.values())
    large = sum(weight.numel() for weight in weights if weight.is_floating_point() and weight.numel() > SMALL)
    others = sum(w.numel() * w.element_size() for w in weights if not w.is_floating_point() or w.numel() <= SMALL)
    return round(large * bytes_per_weight) + others


def free_memory(info: Path = Path("/proc/meminfo")) -> int | None:
    """Say how many bytes programs may still take, swap among them; None where the system does not say."""
    if not info.exists():
        return None
    lines = (line.split() for line in info.read_text(encoding="utf-8").splitlines())
    sizes = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}
    return sizes["MemAvailable"] + sizes.get("SwapFree", 0)
