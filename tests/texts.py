"""Compare what a program makes of texts with what the function that it was captured from makes of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.trace import capture
from diffc.runtime.program.texts import TEXT_OPERATORS, transform
from diffc.runtime.program.verify import verify
from tests.small_models import OPTIONS, Words

TEXTS = (
    "",
    "  \t ",
    "a red circle",
    "  A  RED\tcircle,\n LEFT-of\u00a0a blue\u3000square!  ",
    "it&#39;s &quot;1st&quot; &amp;amp; 2nd &notit; &#x1F534",
    "ÉTÉ é e\u0301 İ ẞ ΟΣ КРУГ 青い ﬁ",
    "🔴👩\u200d👩\u200d👧 x\x1cy\x85z",
    "VERY long and " * 40,
)
"""Capitals, white space, entities, accents, other scripts, emoji, one that is too long, and none."""


def texts_of(program: Program, texts: Mapping[str, str], tokens: Callable[[str, str], list[str]]) -> list[str]:
    """Return the texts that a program tokenizes for one text of each input."""
    values, tokenized = dict(texts), list[str]()
    for op in program.ops:
        if op.operator in TEXT_OPERATORS:
            values[op.results[0].name] = transform(op.operator, dict(op.attrs), values[next(op.reads())], tokens)
        elif op.operator == "tokenize":
            template = str(op.attr("template", "{}"))
            tokenized.append(template.replace("{}", values[next(op.reads())]))
    return tokenized


def same_texts(
    change: Callable[..., str], *, texts: Sequence[str] = TEXTS, vectors: Mapping[str, int] | None = None
) -> Program:
    """Capture a function that tokenizes changed texts, and check that its program changes texts in the same way."""
    words = Words(vectors or {})
    more: list[Any] = [words] if len(inspect.signature(change).parameters) == 2 else []

    def sample(prompt: list[str]) -> torch.Tensor:
        return words([change(text, *more) for text in prompt], **OPTIONS)["input_ids"]

    program = verify(capture(sample, {"words": words}))
    for text in texts:
        assert texts_of(program, {"prompt": text}, lambda _, text: words.tokenize(text)) == [change(text, *more)]
    return program
