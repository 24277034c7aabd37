"""Compare token ids with transformers' CLIP tokenizer, and refuse what is no text."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from diffc.runtime.bundle.tokenizer import Tokenizer
from diffc.runtime.errors import BundleError, DiffcWarning, RequestError

LENGTH = 16
TEXTS = [
    "",
    " ",
    "a red circle",
    "A  RED\tcircle,\n left-of a blue square!",
    "it's 1st & 22nd (no 3)",
    "ein roter Kreis über größeren Kästen",
    "красный круг",
    "青い四角の左にある赤い円",
    "دائرة حمراء",
    "🔴👩‍👩‍👧 e\u0301",
    "a <|endoftext|> b",
    "a small red circle left of a large blue square above a green triangle below a yellow star",
    "x" * 300,
]


@pytest.fixture(scope="module")
def clip() -> CLIPTokenizer:
    """Train a CLIP tokenizer on a few captions."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    library.train_from_iterator(["a small red circle left of a large blue square above green"] * 3, trainer)
    model = json.loads(library.to_str())["model"]
    words = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(letter + "</w>" for letter in alphabet)]
    words = list(dict.fromkeys([*words, *model["vocab"]]))
    vocabulary = {word: at for at, word in enumerate(words)}
    return CLIPTokenizer(vocabulary, [tuple(pair) for pair in model["merges"]], model_max_length=LENGTH)


@pytest.fixture(scope="module")
def tokenizer(clip: CLIPTokenizer) -> Tokenizer:
    library = Library.from_str(clip.backend_tokenizer.to_str())
    library.no_truncation()
    library.no_padding()
    return Tokenizer(library.to_str().encode(), "tokenizer")


@pytest.mark.parametrize("length", [2, 3, 8, LENGTH])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("truncation_side", ["left", "right"])
@pytest.mark.filterwarnings("ignore::diffc.runtime.errors.DiffcWarning")
def test_encodes_as_transformers_does(
    clip: CLIPTokenizer,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    padding_side: str,
    truncation_side: str,
) -> None:
    sides = {"padding_side": padding_side, "truncation_side": truncation_side}
    for side, value in sides.items():
        monkeypatch.setattr(clip, side, value)
    expected = clip(TEXTS, padding="max_length", max_length=length, truncation=True, return_tensors="np")
    ids, mask = tokenizer(TEXTS, length=length, pad=clip.pad_token_id, **sides)
    assert ids.dtype == mask.dtype == np.int64
    np.testing.assert_array_equal(ids, expected.input_ids)
    np.testing.assert_array_equal(mask, expected.attention_mask)


def test_a_template_surrounds_the_text(clip: CLIPTokenizer, tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer(["red {}"], length=LENGTH, pad=0, template="a {} circle")
    expected = clip("a red {} circle").input_ids
    assert ids[0].tolist() == [*expected, *[0] * (LENGTH - len(expected))]


def test_warns_of_what_is_cut_off(tokenizer: Tokenizer) -> None:
    with pytest.warns(DiffcWarning, match="longer than 8 tokens; cut off at its end: 'of a BLUE square'"):
        tokenizer(["a small red circle, left of a BLUE square"], length=8, pad=0)
    with pytest.warns(DiffcWarning, match="longer than 8 tokens; cut off at its start: 'a small red'"):
        tokenizer(["a small red circle, left of a BLUE"], length=8, pad=0, truncation_side="left")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["a small red circle, left"], length=8, pad=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red\0circle", "the prompt holds a NUL byte: 'a red.x00circle'"),
        ("a \ud800 circle", "the prompt is not valid Unicode"),
        (b"a red circle", "the prompt is a bytes"),
        (None, "the prompt is a NoneType"),
    ],
)
def test_refuses_what_is_no_text(tokenizer: Tokenizer, text: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        tokenizer([text], length=8, pad=0)


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"\xff", b'{"version": "9.9"}', b'{"model": null}'])
def test_refuses_a_file_that_is_no_tokenizer(data: bytes) -> None:
    with pytest.raises(BundleError, match="tokenizer words cannot be read"):
        Tokenizer(data, "words")


@pytest.mark.parametrize("lacks", ["unk_token", "special_tokens"])
def test_refuses_a_tokenizer_that_fails_later(tiny: Any, lacks: str) -> None:
    whole = json.loads(tiny.tokenizer())
    if lacks == "unk_token":
        whole["model"]["unk_token"] = "<none>"
    else:
        whole["post_processor"]["special_tokens"].popitem()
    with pytest.raises(BundleError, match="tokenizer words (cannot be read|failed)"):
        Tokenizer(json.dumps(whole).encode(), "words")(["a green star"], length=8, pad=0)


def test_refuses_a_length_without_room(tokenizer: Tokenizer) -> None:
    with pytest.raises(BundleError, match="2 special tokens do not fit 1 tokens"):
        tokenizer([""], length=1, pad=0)
