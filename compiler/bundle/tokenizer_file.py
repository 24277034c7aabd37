"""Write a tokenizer as the file that a bundle holds, and prove that the runtime encodes texts from it as it does."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import tokenizers

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Op
from diffc.compiler.tracing.text_proof import PROBES
from diffc.runtime.bundle.tokenizer import Tokenizer
from diffc.runtime.errors import DiffcWarning

OPTIONS = ("length", "pad", "padding_side", "truncation_side")
"""The keywords of ``tokenize`` that decide the ids of a text."""


def tokenizer_text(name: str, tokenizer: Any) -> str:
    """Return a tokenizer as the ``tokenizers`` library reads it, without padding and truncation: the program has those.

    Raises `CaptureError` for a tokenizer that is written in Python.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise CaptureError(
            f"{name} is no fast tokenizer",
            where=type(tokenizer).__name__,
            fix="add its tokenizer.json to the checkpoint",
        )
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return str(copy.to_str(pretty=True))


def check_encodings(name: str, tokenizer: Any, text: str, calls: Iterable[Op]) -> None:
    """Raise `CaptureError` where the runtime would encode a text otherwise, from the file, than the tokenizer itself.

    The file lacks what the tokenizer's class does around it, such as to split special tokens.
    """
    file, words = Tokenizer(text.encode(), name), [*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder]
    probes = [*PROBES, *(f"{word}a {word} b{word}" for word in dict.fromkeys(words))]
    for options in {tuple((key, op.attr(key)) for key in OPTIONS if op.attr(key) is not None) for op in calls}:
        attrs: dict[str, Any] = dict(options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DiffcWarning)
            encoded = file(probes, **attrs)
        expected = tokenizer(
            probes,
            padding="max_length",
            truncation=True,
            max_length=attrs["length"],
            padding_side=attrs.get("padding_side", "right"),
            return_attention_mask=True,
            return_tensors="np",
        )
        columns = zip(encoded, (expected["input_ids"], expected["attention_mask"]), strict=True)
        differs = np.any([(column != reference).any(axis=1) for column, reference in columns], axis=0)
        if differs.any():
            what = (
                f"{name} encodes {probes[differs.argmax()][:60]!r} otherwise than its file, which is all a bundle has"
            )
            fix = "save the tokenizer without options of its class, such as split_special_tokens"
            raise CaptureError(what, where=type(tokenizer).__name__, fix=fix)
