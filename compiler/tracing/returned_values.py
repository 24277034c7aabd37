"""List and replace the tensors in what a component returns, whatever its structure."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree


def tensors_of(leaf: Any) -> list[tuple[str, torch.Tensor]]:
    """List the tensors of a leaf: itself, or the attributes of an object such as a distribution."""
    if isinstance(leaf, torch.Tensor):
        return [("", leaf)]
    attributes = vars(leaf).items() if hasattr(leaf, "__dict__") and not isinstance(leaf, type) else ()
    return [(name, value) for name, value in attributes if isinstance(value, torch.Tensor)]


def returned_tensors(returned: Any) -> list[torch.Tensor]:
    """List the tensors that a component returned, in order, those inside objects too."""
    return [tensor for leaf in pytree.tree_leaves(returned) for _, tensor in tensors_of(leaf)]


def with_tensors(returned: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """Return the same structure with other tensors."""

    def replaced(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return next(tensors)
        names = [name for name, _ in tensors_of(leaf)]
        if names:
            leaf = copy.copy(leaf)
            for name in names:
                setattr(leaf, name, next(tensors))
        return leaf

    leaves, structure = pytree.tree_flatten(returned)
    return pytree.tree_unflatten([replaced(leaf) for leaf in leaves], structure)
