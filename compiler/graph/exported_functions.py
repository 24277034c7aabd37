"""Compute functions of torch, while a module is exported, by others that can be captured as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class ExportedFunctions(TorchFunctionMode):
    """Replace calls of the functions below, but for arguments of which they return ``NotImplemented``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = EXPORTED[func](*args, **kwargs) if func in EXPORTED else NotImplemented
        return func(*args, **kwargs) if result is NotImplemented else result


def _filled_diagonal(matrix: Tensor, value: float, wrap: bool = False) -> Any:
    """Write a diagonal without reading how the tensor lies in memory, which cannot be made functional."""
    if wrap:
        return NotImplemented
    return matrix.copy_(torch.where(torch.eye(*matrix.shape, dtype=torch.bool), value, matrix))


def _padded(
    parts: Sequence[Tensor], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    """Stack sequences [size, ...] without deciding which is the longest.

    Rows beyond an end repeat the one there and are written over: padding without rows would be another graph.
    """
    if any(part.is_complex() for part in parts):
        pairs = [torch.view_as_real(part).unbind(-1) for part in parts]
        real, imaginary = zip(*pairs, strict=True)
        zeros = _padded(imaginary, batch_first, 0.0, padding_side)
        return torch.complex(_padded(real, batch_first, padding_value, padding_side), zeros)
    longest, *sizes = (part.shape[0] for part in parts)
    for size in sizes:
        longest = torch.sym_max(longest, size)  # type: ignore[no-untyped-call]

    def padded(part: Tensor) -> Tensor:
        size = part.shape[0]
        rows = torch.arange(longest) - (longest - size if padding_side == "left" else 0)
        is_beyond = ((rows < 0) | (rows >= size)).reshape(-1, *(1 for _ in part.shape[1:]))
        repeated = part.index_select(0, rows.clamp(0, size - 1))
        return torch.where(is_beyond, torch.full_like(repeated, padding_value), repeated)

    return torch.stack([padded(part) for part in parts], 0 if batch_first else 1)


EXPORTED: Mapping[Any, Callable[..., Any]] = {
    torch.Tensor.fill_diagonal_: _filled_diagonal,
    torch._C._nn.pad_sequence: _padded,
}
"""What stands for a function during an export."""
