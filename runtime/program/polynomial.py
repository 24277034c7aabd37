"""Define polynomials in the scalars of a request, the coefficients of ``linear``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Polynomial:
    """Hold a polynomial in the scalars of the request: pairs of a monomial (sorted names) and its factor, sorted."""

    terms: tuple[tuple[tuple[str, ...], float], ...] = ()

    @staticmethod
    def of(terms: Mapping[tuple[str, ...], float]) -> Polynomial:
        """Build the normal form: no zero factors, monomials in order."""
        return Polynomial(tuple(sorted((names, factor) for names, factor in terms.items() if factor != 0.0)))

    @staticmethod
    def constant(value: float) -> Polynomial:
        """Build a polynomial of degree zero."""
        return Polynomial.of({(): float(value)})

    @property
    def is_constant(self) -> bool:
        """Return whether no scalar occurs."""
        return all(not names for names, _ in self.terms)

    @property
    def size(self) -> float:
        """Sum the magnitudes of the factors, to which a rounding error is relative."""
        return sum(abs(factor) for _, factor in self.terms)

    def __add__(self, addend: Polynomial) -> Polynomial:
        total = dict(self.terms)
        for names, factor in addend.terms:
            total[names] = total.get(names, 0.0) + factor
        return Polynomial.of(total)

    def __mul__(self, multiplier: Polynomial) -> Polynomial:
        product: dict[tuple[str, ...], float] = {}
        for mine, a in self.terms:
            for theirs, b in multiplier.terms:
                names = tuple(sorted(mine + theirs))
                product[names] = product.get(names, 0.0) + a * b
        return Polynomial.of(product)

    def __call__(self, scalars: Mapping[str, float]) -> float:
        """Evaluate at the scalars of a request, term by term: ``sum`` corrects its rounding from Python 3.12 on."""
        total = 0.0
        for names, factor in self.terms:
            total += factor * math.prod(scalars[name] for name in names)
        return total

    def __str__(self) -> str:
        return " + ".join("*".join([repr(factor), *names]) for names, factor in self.terms) or "0.0"
