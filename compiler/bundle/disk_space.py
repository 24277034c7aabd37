"""Compute how much disk a bundle needs, before its build starts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from diffc.compiler.graph.lazy_weights import EAGER_ELEMENTS

OVERHEAD = 64 << 20
"""Bytes for graphs, tokenizers and tables."""


def bytes_needed(modules: Iterable[nn.Module], bytes_per_weight: float) -> int:
    """Return the bytes that a bundle of the modules needs at most."""
    return bytes_of_weights(modules, bytes_per_weight) + OVERHEAD


def bytes_of_weights(modules: Iterable[nn.Module], bytes_per_weight: float) -> int:
    """Return the bytes of the weights as a target stores them; tied weights count once."""
    tensors = (t for module in modules for t in module.state_dict(keep_vars=True).values())
    weights = list[torch.Tensor]({id(tensor): tensor for tensor in tensors}.values())
    large = sum(weight.numel() for weight in weights if weight.is_floating_point() and weight.numel() > EAGER_ELEMENTS)
    others = sum(
        w.numel() * w.element_size() for w in weights if not w.is_floating_point() or w.numel() <= EAGER_ELEMENTS
    )
    return round(large * bytes_per_weight) + others
