"""A denoiser and a tokenizer for samplers that are written by hand, and programs compared with PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.trace import capture
from diffc.runtime.program.verify import verify
from tests.random_programs import difference, numbers


class Model(nn.Module):
    """Stand for a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(3, 3)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | None = None) -> torch.Tensor:
        """Mix the columns."""
        return torch.tanh(self.mix(sample)) * (1 if timestep is None else timestep)


OPTIONS: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
"""Options of a tokenizer whose tokens have a fixed number."""


class Words:
    """Stand for a tokenizer: the id of a word is its length."""

    pad_token_id = 9
    padding_side = truncation_side = "right"

    def __init__(self, added: Mapping[str, int] | None = None) -> None:
        self.added_tokens_encoder = dict(added or {})

    def tokenize(self, text: str) -> list[str]:
        """Return the added tokens in a text, the longest first, and the words between them."""
        longest = sorted(self.added_tokens_encoder, key=len, reverse=True)
        return re.findall("|".join([*map(re.escape, longest), r"[^\s<]+|<"]), text)

    def encode(self, text: str) -> list[int]:
        """Return the length of each word."""
        return [len(word) for word in text.split()]

    def __call__(
        self, text: str | list[str], padding: str = "", truncation: bool = False, return_tensors: str = ""
    ) -> dict[str, torch.Tensor]:
        """Return four ids for each text."""
        texts = [text] if isinstance(text, str) else text
        ids = torch.tensor([([len(word) for word in line.split()] + [9] * 4)[:4] for line in texts])
        return {"input_ids": ids, "attention_mask": (ids != 9).long()}


def same_as_torch(function: Callable[..., Any], **components: nn.Module) -> Program:
    """Capture a sampler, and check that its program computes exactly what the sampler computes."""
    program = verify(capture(function, components))
    torch.manual_seed(0)
    with torch.no_grad():
        result = function()
    expected = list(result) if isinstance(result, tuple) else [result]
    torch.manual_seed(0)
    noises = [torch.randn(op.results[0].type.shape) for op in program.ops if op.operator == "noise"]
    assert difference(numbers(program, noises), expected) == 0
    return program


def operators(program: Program) -> list[str]:
    """Return the operator of each operation, in order."""
    return [op.operator for op in program.ops]
