"""Functions that take strings only: what they do is proved on probes, or they are refused with a text that shows it."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable

import pytest
import regex
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.trace import capture
from tests.small_models import OPTIONS, Words
from tests.texts import same_texts

SPACES, WIDE_SPACES, RED, WORDS = (
    re.compile(r"\s+"),
    regex.compile(r"\s+"),
    re.compile("red"),
    re.compile(r"(?<=[a-z])\d"),
)

CHANGES: list[tuple[Callable[[str], str], list[str]]] = [
    (lambda text: SPACES.sub(" ", text), ["collapse"]),
    (lambda text: WIDE_SPACES.sub(" ", text).strip(), ["collapse", "strip"]),
    (lambda text: str.lower(text), ["lower"]),
    (lambda text: SPACES.sub(" ", html.unescape(text)).strip().lower(), ["unescape", "lower", "strip", "collapse"]),
    (lambda text: " ".join([text, "sharp"]), []),
    (lambda text: ", ".join([text.strip(), "sharp"]).upper(), ["strip", "fill", "upper"]),
    (lambda text: f" a photo of {text}".strip(), ["fill", "strip"]),
]


@pytest.mark.parametrize(("change", "operators"), CHANGES)
def test_what_strings_become_is_proved(change: Callable[[str], str], operators: list[str]) -> None:
    program = same_texts(change)
    assert sorted(op.operator for op in program.ops if op.operator != "fill") == sorted(
        [*(name for name in operators if name != "fill"), "tokenize"]
    )


REFUSED: list[Callable[[str], str]] = [
    lambda text: RED.sub("blue", text),
    lambda text: WORDS.sub("", text),
    lambda text: unicodedata.normalize("NFC", text),
    lambda text: f"{text}".title(),
    lambda text: f"{text}".replace("mauve", "violet"),
    lambda text: f"a {text}"[:40],
    lambda text: "none" if str(text) == "" else str(text),
    lambda text: str(text) if "blue" in str(text) else f"{text} blue",
]


@pytest.mark.parametrize("change", REFUSED)
def test_what_no_operation_explains_is_refused_with_an_example(change: Callable[[str], str]) -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        return words([change(text) for text in prompt], **OPTIONS)["input_ids"]

    with pytest.raises(CaptureError, match="prompt is changed by what the runtime has no operation for: .* becomes"):
        capture(sample, {"words": words})


def test_tokenizers_that_are_called_for_some_texts_only_are_refused() -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        text = str(prompt[0])
        ids = words([text], **OPTIONS)["input_ids"]
        return ids + (words(["long"], **OPTIONS)["input_ids"] if len(text) > 100 else 1)

    with pytest.raises(CaptureError, match="depends on a text of the request"):
        capture(sample, {"words": words})


def test_a_fixed_text_that_depends_on_the_request_is_refused() -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        text = str(prompt[0])
        return words([text, "red" if "red" in text else "blue"], **OPTIONS)["input_ids"]

    with pytest.raises(CaptureError, match="depends on a text of the request"):
        capture(sample, {"words": words})


def test_the_proof_leaves_the_function_s_errors_as_they_are() -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        return words([prompt[0] + 1], **OPTIONS)["input_ids"]  # type: ignore[operator]

    with pytest.raises(CaptureError, match="can only concatenate str"):
        capture(sample, {"words": words})
