"""Transform a text before it is tokenized: the text operations of a program (docs/program-format.md, section 5.1).

t: text[1] = lower(prompt)                                    lower case of all of Unicode
t: text[1] = upper(prompt)
t: text[1] = strip(prompt)                                    side="left" or "right" strips one end only
t: text[1] = strip(prompt, characters=",.")                   strips these characters instead of white space
t: text[1] = collapse(prompt)                                 a run of white space becomes one space, or ``by``
    t: text[1] = collapse(prompt, keep="\n")                      this is no white space
t: text[1] = unescape(prompt)                                 character references of HTML
t: text[1] = replace(prompt, old="-", new=" ")
t: text[1] = fill(prompt, template="a photo of {}")
t: text[1] = expand(prompt, tokenizer="tokenizer", words=[["<cat>", "<cat> <cat>_1"]])
t: text[1] = without(prompt, start="<", end=">")                refuses a text in which the second follows the first
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from diffc.runtime.errors import RequestError

TEXT_OPERATORS: Mapping[str, tuple[str, ...]] = {
    "lower": (),
    "upper": (),
    "strip": ("side", "characters"),
    "collapse": ("by", "keep"),
    "unescape": (),
    "replace": ("old", "new"),
    "fill": ("template",),
    "expand": ("tokenizer", "words"),
    "without": ("start", "end"),
}
"""The operators from a text to a text, with their keywords."""

Tokens = Callable[[str, str], Collection[str]]
"""Returns the tokens of a text, without special ones, by the name of a tokenizer."""


def transform(operator: str, attrs: Mapping[str, Any], text: str, tokens: Tokens) -> str:
    """Apply a text operation to one text. Raises `RequestError` for a text that a program does not take.

    >>> transform("replace", {"old": "-", "new": " "}, "a-red-circle", lambda tokenizer, text: ())
    'a red circle'
    """
    match operator:
        case "lower":
            return text.lower()
        case "upper":
            return text.upper()
        case "strip":
            return _strip(text, **attrs)
        case "collapse":
            return _collapse(text, **attrs)
        case "unescape":
            return html.unescape(text)
        case "replace":
            return text.replace(attrs["old"], attrs["new"])
        case "fill":
            return str(attrs["template"]).replace("{}", text)
        case "expand":
            return _expand(text, attrs["words"], tokens(attrs["tokenizer"], text))
        case "without":
            return _without(text, **attrs)
    raise AssertionError(f"{operator} is no text operation")


def _strip(text: str, *, side: str = "both", characters: str | None = None) -> str:
    ends = {"both": text.strip, "left": text.lstrip, "right": text.rstrip}
    return ends[side](characters)


def _collapse(text: str, *, by: str = " ", keep: str = "") -> str:
    return by.join(re.split(rf"[^\S{re.escape(keep)}]+", text))


def _expand(text: str, words: Collection[tuple[str, str]], tokens: Collection[str]) -> str:
    """Replace each word that is a token of the text, in order; the tokens are those of the text as it comes."""
    for word, expansion in words:
        if word in tokens:
            text = text.replace(word, expansion)
    return text


def _without(text: str, *, start: str, end: str) -> str:
    for line in text.split("\n"):
        _, is_there, rest = line.partition(start)
        if is_there and end in rest:
            what = f"this program takes no text with something between {start} and {end}"
            raise RequestError(what, where=line[:100], fix="leave these characters out")
    return text
