"""Operations on texts; the corpus of the format compares each with Python's own functions."""

from __future__ import annotations

import pytest

from diffc.runtime.errors import RequestError
from diffc.runtime.program.texts import TEXT_OPERATORS, transform


def no_tokens(tokenizer: str, text: str) -> list[str]:
    """Refuse to be called: only ``expand`` asks for tokens."""
    raise AssertionError(f"the tokens of {text} by {tokenizer}")


@pytest.mark.parametrize(
    ("operator", "attrs", "text", "expected"),
    [
        ("lower", {}, "A RED\u0130", "a redi\u0307"),
        ("upper", {}, "stra\u00dfe", "STRASSE"),
        ("strip", {}, " \u3000a b\x1c", "a b"),
        ("strip", {"side": "right", "characters": ".!"}, ".a!.", ".a"),
        ("collapse", {}, " a\t\n b", " a b"),
        ("collapse", {"by": "_", "keep": "\n"}, "a \n b", "a_\n_b"),
        ("unescape", {}, "&amp;lt; &#233;", "&lt; \u00e9"),
        ("replace", {"old": "aa", "new": "b"}, "aaa", "ba"),
        ("fill", {"template": "a {}."}, "{}", "a {}."),
        ("without", {"start": '"', "end": '"'}, 'one " or\n"', 'one " or\n"'),
    ],
)
def test_a_text_is_transformed(operator: str, attrs: dict[str, str], text: str, expected: str) -> None:
    assert transform(operator, attrs, text, no_tokens) == expected


def test_words_that_are_tokens_are_expanded_by_the_tokens_of_the_text_as_it_comes() -> None:
    words = (("x", "y z"), ("y", "w"), ("b", "c"))
    assert transform("expand", {"tokenizer": "t", "words": words}, "x b", lambda *_: ["x", "b"]) == "y z c"
    assert transform("expand", {"tokenizer": "t", "words": words}, "x y", lambda *_: ["x", "y"]) == "w z w"
    assert transform("expand", {"tokenizer": "t", "words": words}, "x y", lambda *_: ["xy"]) == "x y"


def test_other_operators_are_no_text_operations() -> None:
    assert "tokenize" not in TEXT_OPERATORS
    with pytest.raises(AssertionError, match="split is no text operation"):
        transform("split", {}, "a", no_tokens)


def test_a_text_that_a_program_does_not_take_is_refused_with_its_line() -> None:
    with pytest.raises(RequestError, match="no text with something between < and >") as refused:
        transform("without", {"start": "<", "end": ">"}, "two\na <b> c", no_tokens)
    assert refused.value.where == "a <b> c"
