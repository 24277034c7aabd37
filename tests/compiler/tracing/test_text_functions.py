"""Functions of the standard library on texts of the request: recorded as they compute, or refused by name."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import regex
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.trace import capture
from tests.small_models import OPTIONS, Words
from tests.texts import same_texts

CHANGES: list[tuple[Callable[[str], str], list[str]]] = [
    (lambda text: html.unescape(html.unescape(text)), ["unescape", "unescape"]),
    (lambda text: re.sub(r"\s+", " ", text).strip(), ["collapse", "strip"]),
    (lambda text: re.sub(r"\s+", "_", text), ["collapse"]),
    (lambda text: re.sub(re.compile(r"\s+"), " ", text), ["collapse"]),
    (lambda text: regex.sub(r"\s+", " ", text), ["collapse"]),
    (lambda text: re.sub("red", "blue", text), ["replace"]),
    (lambda text: re.sub("[.re]", " ", text), ["replace"] * 3),
    (lambda text: re.sub(r"\s+", " ", f"a {text} photo"), ["fill", "collapse"]),
    (lambda text: text.lower() if re.sub("a", "b", "aa") == "bb" and html.unescape("&lt;") == "<" else "", ["lower"]),
]


@pytest.mark.parametrize(("change", "operators"), CHANGES)
def test_functions_are_operations_of_the_program(change: Callable[[str], str], operators: list[str]) -> None:
    assert [op.operator for op in same_texts(change).ops] == [*operators, "tokenize"]


REFUSED: list[tuple[Callable[[str], str], str]] = [
    (lambda text: re.sub(r"[a-e]", "", text), r"re\.sub\('\[a-e\]', …\) of prompt"),
    (lambda text: re.sub(r"[ab]", "ab", text), r"re\.sub\('\[ab\]', …\) of prompt"),
    (lambda text: re.sub(r"red", "", text, flags=re.IGNORECASE), r"re\.sub\('red', …\) of prompt"),
    (lambda text: re.sub(r"red", "", text, count=1), r"re\.sub\('red', …\) of prompt"),
    (lambda text: re.sub(r"red", r"\n", text), r"re\.sub\('red', …\) of prompt"),
    (lambda text: re.sub(r"red", lambda match: "x", text), r"re\.sub\('red', …\) of prompt"),
    (lambda text: regex.sub(r"red", "", text, flags=regex.IGNORECASE), r"regex\.sub\('red', …\) of prompt"),
    (lambda text: "".join(re.findall("red", text)), r"re\.findall of prompt"),
    (lambda text: text if re.search("red", text) else "", r"re\.search of prompt"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_other_expressions_are_refused_by_name(change: Callable[[str], str], message: str) -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        return words([change(text) for text in prompt], **OPTIONS)["input_ids"]

    with pytest.raises(CaptureError, match=message):
        capture(sample, {"words": words})


def test_ftfy_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ftfy, words = ModuleType("ftfy"), Words()

    def fix_text(text: str) -> str:
        return text

    for function in ("fix_text", "fix_and_explain", "fix_encoding"):
        setattr(ftfy, function, fix_text)
    monkeypatch.setitem(sys.modules, "ftfy", ftfy)

    def sample(prompt: list[str]) -> torch.Tensor:
        return words([sys.modules["ftfy"].fix_text(prompt[0])], **OPTIONS)["input_ids"]

    with pytest.raises(CaptureError, match=r"ftfy\.fix_text of prompt") as refused:
        capture(sample, {"words": words})
    assert "build where ftfy is not installed" in str(refused.value.fix)
    assert ftfy.fix_text("a") == "a", "the module is as it was"
    assert (re.sub("a", "b", "a"), html.unescape("&lt;")) == ("b", "<")


def test_what_a_function_looks_for_between_two_literals_is_checked_by_its_program() -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        is_quoted = bool(re.findall(r"\"(.*?)\"|\<(.*?)\>", prompt[0])) or re.search("`(.*?)´", prompt[0]) is not None
        texts = ["none" if is_quoted or any(regex.finditer('"(.*?)"', prompt[0])) else f"a photo of {prompt[0]}"]
        return words(texts, **OPTIONS)["input_ids"]

    *checks, tokenize = capture(sample, {"words": words}).ops
    assert [op.operator for op in checks] == ["without"] * 3
    assert [(op.attr("start"), op.attr("end")) for op in checks] == [('"', '"'), ("<", ">"), ("`", "´")]
    assert [*tokenize.reads()] == [checks[-1].results[0].name]
    assert tokenize.attr("template") == "a photo of {}"


def test_what_decides_without_being_tokenized_is_refused() -> None:
    words = Words()

    def sample(prompt: list[str]) -> torch.Tensor:
        ids = words(["a red circle"], **OPTIONS)["input_ids"]
        return ids + torch.randn(1) * (1 if re.findall('"(.*?)"', prompt[0]) else 2)

    with pytest.raises(CaptureError, match="what stands in prompt decides what is computed, but its tokens do not"):
        capture(sample, {"words": words})
