"""Find the numbers of tokens for which one program holds, by tracing at several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Length, Op, Table
from diffc.compiler.tracing.length_fit import Fitted, LengthFit, LengthTrace, Misfit
from diffc.compiler.tracing.open_signatures import Span

Counts = Mapping[str, int]
"""A number of tokens for each text, by the name of its length."""

Trace = Callable[[Counts], LengthTrace]
"""Repeats a trace for texts of other numbers of tokens."""

APART = 1
"""The distance of the two numbers of tokens to which a factor is fitted."""

CHECKS = ((2, -1), (-2, 2))
"""Distances from those of the first trace at which factors are checked: of the first text, and of the second, …"""


@dataclass(frozen=True)
class OpenProgram:
    """Hold what operations of a trace become, by their first results, and the lengths that decide them."""

    ops: Mapping[str, Fitted]
    tables: dict[str, Table]
    lengths: tuple[Length, ...]

    def apply(self, original: Op, op: Op) -> list[Op]:
        """Return what an operation becomes that was rewritten in other arguments than those that lengths decide.

        Raises `CaptureError` where an argument depends on a length and on a scalar of the request.
        """
        fitted = self.ops.get(original.results[0].name) if original.results else None
        if fitted is None:
            return [op]
        triples = zip(_arguments(original), _arguments(op), _arguments(fitted.op), strict=True)
        if any(was not in (one, two) for was, one, two in triples):
            what = f"a constant depends on a number of tokens and on a scalar of the request: {original}"
            raise CaptureError(what[:300], fix="compute it from one of them")
        args = tuple(
            one if two == was else two for was, one, two in zip(original.args, op.args, fitted.op.args, strict=True)
        )
        attrs = tuple(
            one if two == was else two for was, one, two in zip(original.attrs, op.attrs, fitted.op.attrs, strict=True)
        )
        return [*fitted.before, replace(fitted.op, args=args, attrs=attrs)]


def _arguments(op: Op) -> list[object]:
    return [*op.args, *op.attrs]


def fit_over_lengths(first: LengthTrace, bounds: Mapping[str, Span], trace: Trace) -> OpenProgram:
    """Compare a trace with others. Raises `CaptureError` where no function of the lengths explains them."""
    traces = {tuple(first.counts.items()): first}

    def fit(points: Sequence[Counts], spans: Mapping[str, Span] = bounds) -> tuple[LengthFit, list[Fitted]]:
        for point in points:
            if tuple(point.items()) not in traces:
                traces[tuple(point.items())] = trace(point)
        comparison = LengthFit([first, *(traces[tuple(point.items())] for point in points)], spans)
        return comparison, comparison.fit()

    base = {name: span.at for name, span in bounds.items()}
    near: list[Counts] = [base | {name: _clamped(span.at + APART, span)} for name, span in bounds.items()]
    for check in CHECKS:
        distances = (check[at % 2] for at in range(len(bounds)))
        near.append({n: _clamped(s.at + d, s) for (n, s), d in zip(bounds.items(), distances, strict=True)})
    fit(near)

    spans = dict(bounds)
    for name, span in bounds.items():

        def turn(count: int, name: str = name) -> int | None:
            try:
                fit([*near, base | {name: count}])
            except Misfit as misfit:
                return misfit.turn if misfit.turn is not None else base[name]
            return None

        spans[name] = Span(_end(span.at, span.least, turn), _end(span.at, span.most, turn), span.at)
    least, most = ({name: getattr(span, end) for name, span in spans.items()} for end in ("least", "most"))
    middle = {name: (span.least + 2 * span.most) // 3 for name, span in spans.items()}
    mixed = [ends | {name: end[name]} for ends, end in ((least, most), (most, least)) for name in ends]
    comparison, ops = fit([*near, least, middle, most, *mixed], spans)
    needed = [name for name, span in spans.items() if name in comparison.used or span != bounds[name]]
    lengths = tuple(Length(name, spans[name].least, spans[name].most) for name in needed)
    fitted = {item.op.results[0].name: item for item in comparison.opened(ops) if item.op.results}
    return OpenProgram(fitted, comparison.tables, lengths)


def _clamped(count: int, span: Span) -> int:
    return max(span.least, min(count, span.most))


def _end(start: int, end: int, turn: Callable[[int], int | None]) -> int:
    """Return the number nearest to the end up to which a program holds; start where none further is found.

    ``turn`` returns None where the program holds, and where it may hold at the furthest elsewhere.
    """
    holds, fails, probe, is_turn = start, start, end, True
    while probe != holds:
        nearer = turn(probe)
        if nearer is None and is_turn:
            return probe
        holds, fails = (probe, fails) if nearer is None else (holds, probe)
        is_turn = nearer is not None and min(holds, fails) < nearer < max(holds, fails)
        probe = nearer if nearer is not None and is_turn else holds + int((fails - holds) / 2)
    return holds
