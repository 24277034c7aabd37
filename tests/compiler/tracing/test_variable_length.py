"""Cut tensors to the length of a text and pad them: exact for every length, and refused where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.tracing.trace import capture
from tests.request_values import request_values

LONGEST = 4


class Words:
    """Stand for a tokenizer: the id of a word is its length."""

    pad_token_id = 0

    def __call__(self, text: list[str], **_: Any) -> dict[str, torch.Tensor]:
        """Give four ids for each text."""
        ids = torch.tensor([([len(word) for word in one.split()] + [0] * LONGEST)[:LONGEST] for one in text])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def cut(total: int, prompt: list[str]) -> torch.Tensor:
    """Embed a text, cut the rows of its padding off, and pad with zeros instead."""
    encoding = words(prompt, return_tensors="pt", padding="max_length", truncation=True)
    ids, lengths = encoding["input_ids"], encoding["attention_mask"].gt(0).sum(dim=1).long()
    embedded = torch.stack([ids + 0.5, -ids - 0.5], dim=-1)
    rows = [each[:length] for each, length in zip(embedded, lengths, strict=True)]
    noise = torch.randn(1)
    padded = [torch.cat([each, each.new_zeros(total - each.size(0), each.size(1))]) for each in rows]
    return torch.stack(padded) + 0 * noise


words = Words()


@pytest.mark.parametrize("total", [LONGEST, LONGEST + 3])
@pytest.mark.parametrize("texts", [["", "one two"], ["a bb ccc dddd", "a"], ["a bb ccc dddd eeeee", "a bb ccc"]])
def test_every_length_is_exact(total: int, texts: list[str]) -> None:
    def sample(prompt: list[str]) -> torch.Tensor:
        return cut(total, prompt)

    program = capture(sample, {"words": words}, batch=2)
    encoding = words(texts)
    tokens = [encoding["input_ids"], encoding["attention_mask"]]
    [got] = evaluate(program, request_values(program, [torch.zeros(1)], prompt=tokens))
    assert torch.equal(got, cut(total, texts))


def refused(change: Callable[[Any, Any], Any]) -> CaptureError:
    def sample(prompt: list[str]) -> torch.Tensor:
        encoding = words(prompt, return_tensors="pt", padding="max_length", truncation=True)
        ids = encoding["input_ids"][0]
        changed: torch.Tensor = change(ids, encoding["attention_mask"].gt(0).sum(dim=1)[0])
        return changed

    with pytest.raises(CaptureError) as caught:
        capture(sample, {"words": words})
    assert "test_variable_length.py:" in str(caught.value.where), "the line that asks is named"
    return caught.value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, length: ids[:length] * 2, "the pipeline refuses: unsupported operand"),
        (lambda ids, length: ids[:length].sum(), "sum of a tensor that is cut"),
        (lambda ids, length: torch.softmax(ids[:length], 0), "torch.softmax reads a tensor of a length"),
        (lambda ids, length: torch.cat([ids[:length], ids]), "torch.cat reads a tensor of a length"),
        (lambda ids, length: ids[: length - 1], "a slice that ends at a number"),
        (lambda ids, length: ids[: ids.sum()], "a slice that ends at a number"),
        (lambda ids, length: ids[:length].new_zeros(3), "zeros that do not make a prefix whole"),
        (lambda ids, length: cat(ids[:length], 3), "do not make a prefix 3 rows"),
        (lambda ids, length: cat(ids[:length], 4, 2), "do not make a prefix 4 rows"),
    ],
)
def test_what_is_not_exact_is_refused(change: Callable[[Any, Any], Any], message: str) -> None:
    assert message in refused(change).what


def cat(prefix: Any, total: int, *row: int) -> torch.Tensor:
    return torch.cat([prefix, prefix.new_zeros(total - prefix.shape[0], *row)])
