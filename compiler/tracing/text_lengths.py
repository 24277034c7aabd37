"""Assume numbers of tokens for the texts of a trace, so that the elements of their masks are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from diffc.compiler.tracing.known_values import Known
from diffc.compiler.tracing.open_signatures import Span
from diffc.compiler.tracing.token_counts import Outcome, Sized, untried

APART, FIRST = 2, 5
"""How many tokens more than the empty text the first text of a trace is assumed to have, and each later one more."""

LONGER = 4
"""Texts are assumed to have up to so many times the tokens that they are cut to."""

LIMIT = 1 << 20
"""A tokenizer that cuts texts to more tokens than this does not cut them."""


@dataclass(frozen=True)
class TextLength:
    """Hold the bounds of a text's number of tokens, and the number that the trace assumes.

    ``most`` is None for a text that no call has cut so far.
    """

    name: str
    least: int
    most: int | None
    at: int

    def width(self, most: int | None) -> int:
        """Return the number of tokens after cutting the text."""
        return self.at if most is None else min(self.at, most)


class TextLengths:
    """Number the texts of a trace by their first calls of a tokenizer, and assume a number of tokens for each.

    ``markers`` are the numbers to assume, in order; without them they differ from one another.
    """

    def __init__(self, markers: Sequence[int] = ()) -> None:
        self.markers = markers
        self.lengths, self.questions = dict[Any, TextLength](), list[str]()
        self.outcomes = list[Outcome]()

    def length(self, text: Any, least: Callable[[], int], most: int | None) -> TextLength:
        """Return the length of a text, of which ``least`` counts the tokens where it is empty."""
        index = list(self.lengths).index(text) if text in self.lengths else len(self.lengths)
        length = self.lengths.get(text)
        if length is None:
            fewest = least()
            at = self.markers[index] if index < len(self.markers) else fewest + FIRST + APART * index
            length = TextLength(f"L{index}", fewest, None, at)
        if most is not None:
            at = length.at if index < len(self.markers) else min(length.at, max(length.least, most - 1))
            length = replace(length, most=max(most, length.most or 0), at=at)
        self.lengths[text] = length
        return length

    @property
    def spans(self) -> dict[str, Span]:
        """Return the bounds of each length; texts that no call cuts are as long as any other at most."""
        longest = max((length.most for length in self.lengths.values() if length.most is not None), default=0)
        return {
            length.name: Span(length.least, length.most or max(longest, length.at), length.at)
            for length in self.lengths.values()
        }

    @property
    def elsewhere(self) -> list[tuple[int, ...]]:
        """List the most tokens that texts have which are not cut, and the least, where these are not assumed."""
        spans = self.spans.values()
        ends = [tuple(max(span.least, span.most - 1) for span in spans), tuple(span.least for span in spans)]
        return [counts for counts in ends if counts != tuple(span.at for span in spans)]

    def untried(self, outcomes: Sequence[Outcome], tried: Sequence[Sequence[int]]) -> tuple[int, ...] | None:
        """Return numbers of tokens, also such as texts are cut for, with outcomes that none of those tried has."""
        spans = self.spans
        ranges = {name: range(span.least, LONGER * span.most + 1) for name, span in spans.items()}
        counts = untried(outcomes, [dict(zip(spans, values, strict=True)) for values in tried], ranges)
        return None if counts is None else tuple(counts.values())

    def sized(self, length: TextLength, rows: int) -> Sized:
        """Return tokens [rows, count] of a text that is not cut, as a function of their number."""
        return Sized(lambda counts: torch.empty((rows, counts[length.name]), device="meta"), self.outcomes)

    def mask(self, like: torch.Tensor, count: int, *, width: int, on_left: bool) -> Known:
        """Return the mask of texts [texts, width] that have ``count`` tokens each."""
        row = torch.zeros(width, dtype=like.dtype)
        row[width - count if on_left else 0 :][:count] = 1
        return Known(row.repeat(len(like), 1), self.questions)
