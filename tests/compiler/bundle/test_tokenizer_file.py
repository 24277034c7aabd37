"""The tokenizer's file of a bundle encodes as the tokenizer itself, or the build refuses it."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer

from diffc.compiler.bundle.tokenizer_file import check_encodings, tokenizer_text
from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.parse import parse
from tests.zoo.components import bert_tokenizer, clip_tokenizer, gemma_tokenizer, t5_tokenizer


def check(tokenizer: Any, options: str) -> None:
    """Check the file of a tokenizer that a program calls with these options."""
    call = f'ids: int64[1, 8] = tokenize(prompt, tokenizer="words", {options})'
    ops = parse(f"program main(prompt: text[1]) {{ {call} return ids }}").ops
    check_encodings("words", tokenizer, tokenizer_text("words", tokenizer), ops)


@pytest.mark.parametrize("sides", ["", 'padding_side="left"', 'truncation_side="left"'])
@pytest.mark.parametrize("tokenizer", [bert_tokenizer, clip_tokenizer, gemma_tokenizer, t5_tokenizer])
def test_a_file_encodes_as_its_tokenizer(tokenizer: Any, sides: str) -> None:
    words = tokenizer()
    if "truncation" in sides:
        words.truncation_side = "left"
    check(words, ", ".join([f"length=8, pad={words.pad_token_id}", *([sides] if sides else [])]))


def test_what_the_class_does_around_the_file_is_refused() -> None:
    words = clip_tokenizer()
    pad = f"length=8, pad={words.pad_token_id}"
    words.split_special_tokens = True
    with pytest.raises(CaptureError, match=r"words encodes '<\|startoftext\|>a .*' otherwise than its file") as refused:
        check(words, pad)
    assert "split_special_tokens" in str(refused.value.fix)

    class Lower(transformers.CLIPTokenizer):
        def __call__(self, text: list[str], **options: Any) -> Any:
            return super().__call__([f"{line} x" for line in text], **options)

    words = clip_tokenizer()
    words.__class__ = Lower
    with pytest.raises(CaptureError, match="otherwise than its file") as refused:
        check(words, pad)
    assert refused.value.where == "Lower"


def test_another_token_to_pad_with_is_refused() -> None:
    with pytest.raises(CaptureError, match="otherwise than its file"):
        check(clip_tokenizer(), "length=8, pad=3")


def test_the_program_says_how_texts_are_padded_and_cut() -> None:
    tokenizer = clip_tokenizer()
    tokenizer(["a"], padding="max_length", max_length=8, truncation=True)
    assert tokenizer.backend_tokenizer.padding and tokenizer.backend_tokenizer.truncation
    text = Tokenizer.from_str(tokenizer_text("tokenizer", tokenizer))
    assert text.padding is None and text.truncation is None


def test_a_tokenizer_that_is_written_in_python_is_refused() -> None:
    with pytest.raises(CaptureError, match="tokenizer_2 is no fast tokenizer") as refused:
        tokenizer_text("tokenizer_2", object())
    assert refused.value.where == "object" and "tokenizer.json" in str(refused.value.fix)
