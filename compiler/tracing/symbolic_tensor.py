"""Represent the values of a program while it is traced: tensors with a type and a name, without elements."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.export import type_of
from diffc.compiler.tracing.functionalize import View
from diffc.compiler.tracing.known_values import Known
from diffc.compiler.tracing.token_counts import Sized
from diffc.compiler.tracing.value_ranges import Bounds, Ranged
from diffc.compiler.tracing.variable_length import prefix


class Symbolic(torch.Tensor):
    """Represent a value of the program by its type and its name."""

    fake: torch.Tensor
    label: str
    alias: View | None
    version: int
    bounds: Bounds | None
    known: Known | None
    tokens: tuple[Any, ...] | None
    """Of which text, and how encoded, these are the tokens: tensors of one shape with the same are equal."""

    sized: Sized | None
    """The sizes as functions of numbers of tokens, for tensors of as many tokens as a text has."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, fake: torch.Tensor, name: str) -> Symbolic:
        symbolic = torch.Tensor._make_wrapper_subclass(
            cls, fake.shape, strides=fake.stride(), dtype=fake.dtype, device=fake.device
        )
        symbolic.fake, symbolic.label, symbolic.alias, symbolic.version = fake, name, None, 0
        symbolic.bounds = symbolic.known = symbolic.tokens = symbolic.sized = None
        return symbolic

    def __init__(self, fake: torch.Tensor, name: str) -> None:
        super().__init__()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def,override]
        raise CaptureError(
            f"{func} reaches a symbolic value after its trace has ended", fix="keep no state between calls"
        )

    @property  # type: ignore[override]
    def data(self) -> Symbolic:
        """Return the tensor; it has no gradient to leave out."""
        return self

    @data.setter
    def data(self, replacement: Any) -> None:
        raise CaptureError("a symbolic value's .data is replaced", fix="assign the new tensor to a name, or use copy_")

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """Return the sizes; those of the tokens of a text note what they are compared with."""
        return self.fake.shape if self.sized is None else self.sized.shape(self.fake.shape)

    def size(self, dim: int | None = None) -> Any:
        """Return one size or all."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Any:
        """Return a prefix of a length known only at run time, or index as any tensor does."""
        if isinstance(index, slice) and isinstance(index.stop, Symbolic) and (index.start, index.step) == (None, None):
            return prefix(self, index.stop)
        return super().__getitem__(index)

    def item(self) -> Any:
        """Return the element where it is known, or a scalar of known range; raise `CaptureError` otherwise."""
        return Ranged(self.bounds) if self.bounds and self.known is None else super().item()

    def tolist(self) -> Any:
        """Return the elements in lists where they are known; raise `CaptureError` otherwise."""
        return super().tolist() if self.known is None else self.known.answer().tolist()

    def __deepcopy__(self, _: object) -> torch.Tensor:
        """Return a copy that later writes do not change."""
        return self.clone()

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise CaptureError("a symbolic value is pickled, or copied without its memory", fix="use its clone()")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Symbolic({self.label}: {type_of(self.fake)})"


def equal(one: Any, two: Any) -> bool | None:
    """Return whether two tensors have the same elements; None where that is not known before the run."""
    if one.shape != two.shape:
        return False
    tokens = [tensor.tokens for tensor in (one, two) if isinstance(tensor, Symbolic)]
    return True if len(tokens) == 2 and tokens[0] is not None and tokens[0] == tokens[1] else None
