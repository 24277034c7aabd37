"""Texts of the request: what a function does to them is in the program, and else the function is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.symbolic_text import Derivation, SymbolicText, Texts
from diffc.compiler.tracing.trace import capture
from diffc.runtime.program.verify import verify
from tests.small_models import OPTIONS, Words
from tests.texts import same_texts

CHANGES: list[tuple[Callable[[str], str], list[str]]] = [
    (lambda text: text.lower(), ["lower"]),
    (lambda text: text.upper().strip(), ["upper", "strip"]),
    (lambda text: text.lstrip().rstrip("!."), ["strip", "strip"]),
    (lambda text: text.replace("red", "blue"), ["replace"]),
    (lambda text: text.lower() + ", sharp", ["lower"]),
    (lambda text: ("a photo of " + text).upper(), ["fill", "upper"]),
    (lambda text: f"a {text.strip()}.", ["strip"]),
    (lambda text: str.format("a {}", text.lower()), ["lower"]),
    (lambda text: f"a {text}.".lower(), ["fill", "lower"]),
    (lambda text: " ".join(text.split()), ["strip", "collapse"]),
    (lambda text: "_".join(text.lower().split()), ["lower", "strip", "collapse"]),
    (lambda text: str(text), []),
    (lambda text: text or "", []),
]


@pytest.mark.parametrize(("change", "operators"), CHANGES)
def test_what_is_done_to_a_text_is_in_the_program(change: Callable[[str], str], operators: list[str]) -> None:
    program = same_texts(change)
    assert [op.operator for op in program.ops] == [*operators, "tokenize"]


REFUSED: list[tuple[Callable[[str], str], str]] = [
    (lambda text: text.title(), "title of prompt, a text that only the run knows"),
    (lambda text: text[:10], "characters of prompt"),
    (lambda text: text if "red" in text else "", "what occurs of prompt"),
    (lambda text: text if len(text) < 9 else "", "the length of prompt"),
    (lambda text: text if text else "none", "'' becomes 'none'"),
    (lambda text: "none" if text == "" else text, "a comparison of prompt"),
    (lambda text: {"": "none"}.get(text, text), "a look-up of prompt"),
    (lambda text: text * 2, "an operator of prompt"),
    (lambda text: text.replace("a", "b", 1), "a replacement of some occurrences, or by another text of prompt"),
    (lambda text: text.replace("a", text), "a replacement of some occurrences, or by another text of prompt"),
    (lambda text: text.split(",")[0], "split at a separator of prompt"),
    (lambda text: text.split()[0], "only some words of a text are used"),
    (lambda text: f"{text} {text}", "a text is made of several texts of the request"),
    (lambda text: "{} " + text, "the template of a text holds {} itself"),
    (lambda text: f"{text:>9}", "the format >9 of prompt"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_the_runtime_has_no_operation_for_is_refused(change: Callable[[str], str], message: str) -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        return words([change(text) for text in prompt], **OPTIONS)["input_ids"]

    with pytest.raises(CaptureError) as refused:
        capture(sample, {"words": words})
    assert message in refused.value.what
    assert "test_symbolic_text.py" in str(refused.value.where)


def test_a_batch_is_changed_once_and_each_input_on_its_own() -> None:
    words = Words()

    def sample(prompt: list[str], negative_prompt: list[str]) -> torch.Tensor:
        first = words([text.lower() for text in prompt], **OPTIONS)["input_ids"]
        return first + words([text.strip() for text in negative_prompt], **OPTIONS)["input_ids"]

    program = verify(capture(sample, {"words": words}, batch=3))
    assert [str(op) for op in program.ops if op.operator in ("lower", "strip")] == [
        "text0: text[3] = lower(prompt)",
        "text1: text[3] = strip(negative_prompt)",
    ]


def test_a_text_passes_for_a_string_and_is_none() -> None:
    text: Any = SymbolicText(Derivation("prompt"), Texts())
    assert isinstance(text, str)
    assert type(text) is not str
    assert copy.deepcopy(text) is text
    assert text == text and text != 3 and text not in (None, 3)
    assert not hasattr(text, "__array__")
    with pytest.raises(TypeError):
        " ".join([text])


def test_a_text_of_two_inputs_is_refused() -> None:
    words = Words()

    def sample(prompt: list[str], style: list[str]) -> torch.Tensor:
        return words([f"{prompt[0]}, {style[0]}"], **OPTIONS)["input_ids"]

    with pytest.raises(CaptureError, match="made of several texts of the request"):
        capture(sample, {"words": words})


VECTORS = {"<cat>": 1, "<cat>_1": 2, "<cat>_2": 3, "<dog>": 4, "<dog>_1": 5, "<one>": 6}


def converted(words: Words, prompt: str) -> str:
    """Replace words of several vectors as diffusers does."""
    for token in set(words.tokenize(prompt)):
        if token in words.added_tokens_encoder:
            replacement, i = token, 1
            while f"{token}_{i}" in words.added_tokens_encoder:
                replacement += f" {token}_{i}"
                i += 1
            prompt = prompt.replace(token, replacement)
    return prompt


def test_words_of_several_vectors_are_expanded_where_they_occur() -> None:
    texts = ("a <cat>", "<cat>", "<dog>, a <cat> and <one>", "<dog>", "a<cat>", "a <CAT>", "")
    program = same_texts(lambda text, words: converted(words, text).strip(), texts=texts, vectors=VECTORS)
    assert str(program.ops[0]) == (
        'text0: text[1] = expand(prompt, tokenizer="words", words=[["<cat>", "<cat> <cat>_1 <cat>_2"],'
        ' ["<dog>", "<dog> <dog>_1"]])'
    )
    assert [op.operator for op in program.ops] == ["expand", "strip", "tokenize"]


def test_words_of_one_vector_stand_as_they_are() -> None:
    program = same_texts(lambda text, words: converted(words, text), texts=("a <one>",), vectors={"<one>": 6})
    assert [op.operator for op in program.ops] == ["tokenize"]


def test_tokens_that_are_used_otherwise_are_refused() -> None:
    words = Words(VECTORS)

    def counted(prompt: list[str]) -> torch.Tensor:
        count = sum(token in VECTORS for token in words.tokenize(prompt[0]))
        return words([converted(words, prompt[0]) + f" {count}"], **OPTIONS)["input_ids"]

    def elsewhere(prompt: list[str]) -> torch.Tensor:
        tokens = list(words.tokenize(prompt[0]))
        return words([prompt[0].lower().replace(tokens[0], "cat")], **OPTIONS)["input_ids"]

    with pytest.raises(CaptureError, match="prompt is changed by what the runtime has no operation for"):
        capture(counted, {"words": words})
    with pytest.raises(CaptureError, match="the token <cat> of one text is replaced in another"):
        capture(elsewhere, {"words": words})
