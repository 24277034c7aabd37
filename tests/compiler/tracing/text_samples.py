"""Samplers that drop the padding of a text, with the words and the encoder that they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from diffc.compiler.driver.pass_manager import run
from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.trace import capture
from diffc.passes import NORMAL_FORM
from tests.request_values import request_values

MOST = 16
Sample = Callable[[list[str]], torch.Tensor]


class Words:
    """Stand for a tokenizer: the id of a word is its length, and an end token follows."""

    pad_token_id = 0
    model_max_length = MOST

    def __call__(self, text: list[str], *, padding: Any = True, truncation: bool = False, **_: Any) -> Any:
        """Encode texts, padded to the longest or to the most tokens."""
        rows = [[len(word) for word in one.split()] + [9] for one in text]
        rows = [row[: MOST - 1] + row[-1:] if truncation and len(row) > MOST else row for row in rows]
        width = MOST if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def batch_decode(self, sequences: torch.Tensor) -> list[str]:
        """Return words."""
        return ["word" for _ in sequences]


class Encoder(nn.Module):
    """Embed tokens, and mix what the mask lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, count: int = 0) -> torch.Tensor:
        """Add the mean of all tokens to each, and a number."""
        x = self.embedding(ids)
        weights = mask[..., None].to(x.dtype)
        return x + (x * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True) + count


words, encoder = Words(), Encoder().requires_grad_(False)
COMPONENTS = {"words": words, "encoder": encoder}


def encoded(prompt: list[str], padding: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = words(prompt, return_tensors="pt", padding=padding, truncation=True, **options)
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    return encoder(ids, mask), mask


def selected(prompt: list[str]) -> torch.Tensor:
    hidden, mask = encoded(prompt, "max_length")
    rows = torch.split(hidden[mask.bool()], mask.sum(dim=1).tolist(), dim=0)
    return torch.stack([row[1:] for row in rows]).sum(1)


def unpadded(prompt: list[str]) -> torch.Tensor:
    hidden, mask = encoded(prompt, True)
    return torch.cat([hidden, hidden.new_zeros(1, 20 - hidden.shape[1], 3)], 1) + mask.sum()


def cleared(prompt: list[str]) -> torch.Tensor:
    hidden, mask = encoded(prompt, "max_length")
    hidden[0, int(mask.sum()) :] = 0
    return hidden


def encoded_again(prompt: list[str]) -> torch.Tensor:
    _, mask = encoded(prompt, "max_length")
    count = int(mask.sum())
    ids = torch.arange(count)[None] + 7
    return encoder(ids, torch.ones(1, count), count=count).sum(1)


def two(prompt: list[str], negative: list[str]) -> torch.Tensor:
    (one, _), (other, _) = encoded(prompt, True), encoded(negative, True)
    both = torch.cat([one, other], 1)
    return both.mean(1) * both.shape[1]


def traced(sample: Callable[..., torch.Tensor], **components: nn.Module) -> Program:
    def noisy(*args: Any, **texts: Any) -> torch.Tensor:
        return sample(*args, **texts) + 0 * torch.randn(1)

    noisy.__signature__ = __import__("inspect").signature(sample)  # type: ignore[attr-defined]
    return run(capture(noisy, COMPONENTS | components), NORMAL_FORM)


def evaluated(program: Program, **texts: str) -> torch.Tensor:
    tokens, counts = {}, dict[str, torch.Tensor]()
    for op in program.ops:
        if op.operator == "tokenize":
            [text] = op.reads()
            padding = True if op.results[0].type.lengths else "max_length"
            encoding = words([texts[text]], padding=padding, truncation=True)
            tokens[text] = [encoding["input_ids"], encoding["attention_mask"]]
            counts[str(op.attr("count"))] = encoding["attention_mask"].sum()
    values = request_values(program, [torch.zeros(1)], **tokens)
    return evaluate(program, values | counts)[0]
