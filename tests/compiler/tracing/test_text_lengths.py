"""Assume numbers of tokens: different for each text, as asked in a repeated trace, never more than a text may have."""

from __future__ import annotations

import torch

from diffc.compiler.tracing.open_signatures import Span
from diffc.compiler.tracing.text_lengths import TextLengths


def test_each_text_has_a_length_of_its_own() -> None:
    lengths = TextLengths()
    one = lengths.length("prompt", lambda: 2, 77)
    two = lengths.length("negative", lambda: 3, 77)
    assert one.at != two.at
    assert lengths.length("prompt", lambda: 0, None) == one
    assert lengths.spans == {"L0": Span(2, 77, one.at), "L1": Span(3, 77, two.at)}


def test_a_repeated_trace_assumes_other_numbers() -> None:
    lengths = TextLengths(markers=(4, 9))
    assert [lengths.length(text, lambda: 1, 12).at for text in ("prompt", "negative")] == [4, 9]


def test_a_short_limit_is_respected() -> None:
    assert TextLengths().length("prompt", lambda: 2, 4).at == 3
    assert TextLengths().length("prompt", lambda: 2, 2).at == 2


def test_a_mask_has_its_padding_on_its_side() -> None:
    lengths, like = TextLengths(), torch.zeros(2, 5, dtype=torch.int64)
    assert lengths.mask(like, 2, width=5, on_left=False).result.tolist() == [[1, 1, 0, 0, 0]] * 2
    assert lengths.mask(like, 2, width=5, on_left=True).result.tolist() == [[0, 0, 0, 1, 1]] * 2
