"""Follow numbers of tokens through the Python code of a function, and note what they are compared with.

A trace assumes a number of tokens for each text, so the function sees integers. A `Count` is such an integer that knows
its value for other numbers of tokens: a comparison notes its outcome as a function of them. Numbers of tokens for which
all outcomes are the same lead to the same computation, so a trace at one of each class shows every computation.

    if 10 < ids.shape[-1] < 14:       classes 2 to 10, 11 to 13, 14 and more
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

Counts = Mapping[str, int]
"""A number of tokens for each text, by the name of its length."""

Outcome = Callable[[Counts], Hashable]


class Count(int):
    """Behave as an integer that depends on numbers of tokens, and note comparisons and other uses of its value."""

    at: Callable[[Counts], int]
    outcomes: list[Outcome]

    def __new__(cls, value: int, at: Callable[[Counts], int], outcomes: list[Outcome]) -> Count:
        """Follow an integer that is ``at(counts)`` for other numbers of tokens."""
        count = super().__new__(cls, value)
        count.at, count.outcomes = at, outcomes
        return count

    def __copy__(self) -> Count:
        return self

    def __deepcopy__(self, _: object) -> Count:
        return self

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return int, (int(self),)


def _value(operand: Any, counts: Counts) -> Any:
    return operand.at(counts) if isinstance(operand, Count) else operand


def _computing(function: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Count, *operands: Any) -> Any:
        value = own(self, *operands)
        if type(value) is not int:
            self.outcomes.append(self.at)
            return value
        return Count(
            value, lambda counts: function(self.at(counts), *(_value(o, counts) for o in operands)), self.outcomes
        )

    return method


def _comparing(function: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Count, *operands: Any) -> Any:
        self.outcomes.append(lambda counts: function(self.at(counts), *(_value(o, counts) for o in operands)))
        return own(self, *operands)

    return method


def _reading(own: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Count, *operands: Any) -> Any:
        self.outcomes.append(self.at)
        return own(self, *operands)

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow"):
    _function = getattr(operator, _name)
    setattr(Count, f"__{_name}__", _computing(_function, getattr(int, f"__{_name}__")))
    _swapped = (lambda function: lambda one, two: function(two, one))(_function)
    setattr(Count, f"__r{_name}__", _computing(_swapped, getattr(int, f"__r{_name}__")))
for _name in ("neg", "abs"):
    setattr(Count, f"__{_name}__", _computing(getattr(operator, _name), getattr(int, f"__{_name}__")))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Count, f"__{_name}__", _comparing(getattr(operator, _name), getattr(int, f"__{_name}__")))
Count.__bool__ = _comparing(bool, int.__bool__)  # type: ignore[method-assign]
for _name in ("divmod", "and", "or", "xor", "lshift", "rshift"):
    for _side in (_name, f"r{_name}"):
        setattr(Count, f"__{_side}__", _reading(getattr(int, f"__{_side}__")))
_READINGS = (
    "hash",
    "int",
    "index",
    "float",
    "round",
    "pos",
    "invert",
    "trunc",
    "floor",
    "ceil",
    "repr",
    "str",
    "format",
)
for _name in _READINGS:
    setattr(Count, f"__{_name}__", _reading(getattr(int, f"__{_name}__")))


def exact(item: Any) -> Any:
    """Return an integer without what a `Count` knows, and everything else as it is."""
    return int.__add__(item, 0) if isinstance(item, Count) else item


@dataclass(frozen=True, eq=False)
class Sized:
    """Hold a tensor without elements as a function of numbers of tokens, and the list of outcomes."""

    at: Callable[[Counts], torch.Tensor]
    outcomes: list[Outcome]

    def shape(self, sizes: Sequence[int]) -> torch.Size:
        """Return the sizes of the trace, each of which notes its uses."""
        return torch.Size([self._size(axis, size) for axis, size in enumerate(sizes)])

    def _size(self, axis: int, size: int) -> Count:
        return Count(size, lambda counts: int(self.at(counts).shape[axis]), self.outcomes)


def sized_results(func: Any, args: Any, kwargs: Any, count: int) -> list[Sized | None]:
    """Return the results of an operator on tensors whose sizes are functions of numbers of tokens."""
    operands = [leaf.sized for leaf in pytree.tree_leaves((args, kwargs)) if hasattr(leaf, "sized")]
    if not operands or None in operands:
        return [None] * count

    def at(counts: Counts, index: int) -> torch.Tensor:
        def without_elements(leaf: Any) -> Any:
            if hasattr(leaf, "sized"):
                return leaf.sized.at(counts)
            return leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf

        with _disable_current_modes():
            results = func(*pytree.tree_map(without_elements, args), **pytree.tree_map(without_elements, kwargs))
        tensor: torch.Tensor = pytree.tree_leaves(results)[index]
        return tensor

    def result(index: int) -> Sized:
        return Sized(lambda counts: at(counts, index), operands[0].outcomes)

    return [result(index) for index in range(count)]


def untried(outcomes: Sequence[Outcome], tried: Sequence[Counts], ranges: Mapping[str, range]) -> Counts | None:
    """Return numbers of tokens with other outcomes than those that were tried, one text's apart from the others'.

    Those of all texts whose outcomes may still be others are changed at once. Returns None where there are none.
    """
    base, changes = tried[0], dict[str, int]()
    for name in base:

        def classes(count: int, name: str = name) -> tuple[Hashable, ...]:
            counts = {**base, name: count}
            return tuple(outcome(counts) for outcome in outcomes)

        seen = {classes(counts[name]) for counts in tried}
        count = next((count for count in ranges[name] if classes(count) not in seen), None)
        changes |= {} if count is None else {name: count}
    return {**base, **changes} if changes else None
