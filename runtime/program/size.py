"""Define the sizes that a request decides: affine expressions in lengths, such as the number of tokens of a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import SupportsInt


@dataclass(frozen=True, repr=False)
class Size:
    """Hold a size that is affine in lengths: a constant, and the factor of each length, sorted by name.

    Arithmetic returns an integer where no length is left.

    >>> size = 2 * Size.of("L0") + 1
    >>> size, size.at({"L0": 5}), size - 2 * Size.of("L0")
    (2*L0 + 1, 11, 1)
    """

    constant: int
    factors: tuple[tuple[str, int], ...]

    @staticmethod
    def of(length: str) -> Size:
        """Build the size that is one length."""
        return Size(0, ((length, 1),))

    @property
    def lengths(self) -> tuple[str, ...]:
        """Return the names of the lengths that occur."""
        return tuple(name for name, _ in self.factors)

    def at(self, lengths: Mapping[str, SupportsInt]) -> int:
        """Evaluate at the lengths of a request."""
        return self.constant + sum(factor * int(lengths[name]) for name, factor in self.factors)

    def replaced(self, sizes: Mapping[str, AnySize]) -> AnySize:
        """Replace lengths by sizes; lengths without one stay."""
        total: AnySize = self.constant
        for name, factor in self.factors:
            total = total + factor * sizes.get(name, Size.of(name))
        return total

    def bounds(self, lengths: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
        """Return the least and the greatest value for lengths between bounds."""
        ends = [sorted((factor * lengths[name][0], factor * lengths[name][1])) for name, factor in self.factors]
        return self.constant + sum(low for low, _ in ends), self.constant + sum(high for _, high in ends)

    def __add__(self, addend: AnySize) -> AnySize:
        constant, factors = (addend.constant, addend.factors) if isinstance(addend, Size) else (addend, ())
        total = dict(self.factors)
        for name, factor in factors:
            total[name] = total.get(name, 0) + factor
        left = tuple(sorted((name, factor) for name, factor in total.items() if factor))
        return Size(self.constant + constant, left) if left else self.constant + constant

    def __mul__(self, factor: int) -> AnySize:
        return Size(self.constant * factor, tuple((name, f * factor) for name, f in self.factors)) if factor else 0

    def __sub__(self, subtrahend: AnySize) -> AnySize:
        return self + -1 * subtrahend

    def __rsub__(self, minuend: int) -> AnySize:
        return -1 * self + minuend

    __radd__, __rmul__ = __add__, __mul__

    def __repr__(self) -> str:
        lengths = " + ".join(name if factor == 1 else f"{factor}*{name}" for name, factor in self.factors)
        sign = "-" if self.constant < 0 else "+"
        return f"{lengths} {sign} {abs(self.constant)}" if self.constant else lengths


AnySize = int | Size


def bounds(size: AnySize, lengths: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Return the least and the greatest value of a size for lengths between bounds."""
    return size.bounds(lengths) if isinstance(size, Size) else (size, size)


def bind(pairs: Iterable[tuple[AnySize, AnySize]]) -> dict[str, AnySize]:
    """Return the sizes that the lengths of a graph stand for in a call, from pairs of a port's and an argument's size.

    A size of a port with one length binds it, unless an earlier one did: `2*L0 + 1`, called with 9, binds L0 to 4.
    """
    sizes = dict[str, AnySize]()
    for size, argument in pairs:
        if isinstance(size, Size) and len(size.factors) == 1:
            [(name, factor)] = size.factors
            if name not in sizes and (bound := _divided(argument - size.constant, factor)) is not None:
                sizes[name] = bound
    return sizes


def _divided(size: AnySize, divisor: int) -> AnySize | None:
    constant, factors = (size.constant, size.factors) if isinstance(size, Size) else (size, ())
    if any(number % divisor for number in (constant, *(factor for _, factor in factors))):
        return None
    parts = tuple((name, factor // divisor) for name, factor in factors)
    return Size(constant // divisor, parts) if parts else constant // divisor
