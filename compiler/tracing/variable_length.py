"""Follow a tensor that is cut to the length of the text, which only the run knows, until it is padded again.

A program has fixed shapes. What a pipeline cuts off is, as a rule, padded with zeros further on: between the two stands
a `Prefix`, which knows the whole tensor and the length. It can be measured and padded; all else is refused.

    prefix = whole[:length]
    zeros = prefix.new_zeros(16 - prefix.size(0), prefix.size(1))
    torch.cat([prefix, zeros])                       is whole where arange < length, and zero elsewhere
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from diffc.compiler.errors import CaptureError


class _OfUnknownLength:
    """Refuse every operation that a subclass does not define."""

    def __getattr__(self, name: str) -> NoReturn:
        raise CaptureError(
            f"{name} of a tensor that is cut to a length that only the run knows", fix="pad it with zeros first"
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.cat and len(args[0]) == 2 and not any((*args[1:], *(kwargs or {}).values())):
            prefix, zeros = args[0]
            if isinstance(prefix, Prefix) and isinstance(zeros, Zeros) and zeros.rest.length is prefix.length:
                return prefix.padded(zeros)
        name = getattr(func, "__name__", func)
        raise CaptureError(f"torch.{name} reads a tensor of a length that only the run knows", fix="pad it with zeros")


@dataclass(frozen=True, eq=False)
class Length:
    """Count the rows of a prefix; the number can only be taken from a constant."""

    length: Any

    def __rsub__(self, total: int) -> Rest:
        return Rest(total, self.length)


@dataclass(frozen=True, eq=False)
class Rest:
    """Count the rows that a prefix lacks to ``total``."""

    total: int
    length: Any


@dataclass(frozen=True, eq=False)
class Zeros(_OfUnknownLength):
    """Hold the padding of a prefix: as many rows of zeros as it lacks."""

    rest: Rest
    row: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Prefix(_OfUnknownLength):
    """Hold the first ``length`` rows of a tensor, of which there are at least none and at most all."""

    tensor: torch.Tensor
    length: Any

    @property
    def shape(self) -> tuple[Any, ...]:
        """Return the length and the sizes of a row."""
        return Length(self.length), *self.tensor.shape[1:]

    def size(self, axis: int | None = None) -> Any:
        """Return one size or all."""
        return self.shape if axis is None else self.shape[axis]

    def new_zeros(self, *size: Any) -> Zeros:
        """Make the rows that the prefix lacks."""
        rows, *row = size[0] if len(size) == 1 and isinstance(size[0], Sequence) else size
        if not isinstance(rows, Rest) or rows.length is not self.length:
            raise CaptureError("zeros that do not make a prefix whole", fix="make as many as it lacks")
        return Zeros(rows, tuple(row))

    def padded(self, zeros: Zeros) -> torch.Tensor:
        """Return the tensor with zeros from the length on, cut or padded to the resulting size."""
        total, rows = zeros.rest.total, self.tensor.shape[0]
        if zeros.row != tuple(self.tensor.shape[1:]) or total < min(rows, self.length.bounds[1]):
            raise CaptureError(
                f"rows of {list(zeros.row)} do not make a prefix {total} rows", fix="pad it with as many"
            )
        inside = (torch.arange(rows) < self.length).reshape(rows, *[1] * len(zeros.row))
        values = torch.where(inside, self.tensor, torch.zeros((), dtype=self.tensor.dtype))[:total]
        missing = total - values.shape[0]
        return torch.cat([values, torch.zeros((missing, *zeros.row), dtype=values.dtype)]) if missing else values


def prefix(tensor: torch.Tensor, length: Any) -> Prefix:
    """Cut a tensor. Raises `CaptureError` where the length may be negative, which would count from the end."""
    if length.dim() or length.dtype.is_floating_point or length.bounds is None or length.bounds[0] < 0:
        raise CaptureError("a slice that ends at a number that only the run knows", fix="end it at a count, or mask it")
    return Prefix(tensor, length)
