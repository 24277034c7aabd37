"""Define texts for the text operations; Python's ``str``, ``html`` and ``re`` compute what becomes of them."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from diffusers.loaders import TextualInversionLoaderMixin
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.format.token_cases import clip

WHITE_SPACE = "".join(character for character in map(chr, range(0x110000)) if character.isspace())
TEXTS = [
    "",
    " ",
    "a red circle",
    "  A  RED\tcircle,\n left-of a BLUE square! \r\n",
    "x" + "y".join(WHITE_SPACE) + "z",
    f"{WHITE_SPACE}a{WHITE_SPACE}b{WHITE_SPACE}",
    "a\x1c\x1d b\x1e\x1fc\x85d\u200be\ufefff\u180eg",
    "İIıi ẞß ΑΣ ΣΑΣ ΑΣ. Σ ŉ ǰ ﬁ Ⅳ Ǆ ῼ КРУГ Ａ 𐐀 É e\u0301 Å",
    "青い四角の左にある赤い円 دائرة حمراء 🔴👩\u200d👩\u200d👧",
    "&amp; &lt;b&gt; &quot;q&quot; &apos; &nbsp;x &AMP &amp;amp; &notit; &notin; &not &nosuch; &eacute",
    "&Eacute; &fjlig;",
    "&#38; &#38 &#x26;&#X26 &#x1F534; &#0; &#128; &#x80;&#159; &#13; &#xD800; &#x110000; &#1; &#xFDD0;",
    "&#xFFFE; &#;&#x;",
    "&CounterClockwiseContourIntegral; &aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "& &; &&amp; &am\tp; 100% a&b=c&copy=d",
    "{} \\1 \\n $1 ^a.b*[c](d)|e+?",
    "aaaa a-b--c",
]

BETWEEN = [
    "",
    'a "b" c',
    '"',
    '""',
    '"\n"',
    '"\r"',
    "<<>",
    "<>",
    "<< >",
    "<<<>",
    ">>> <<",
    "\u201c\u201d",
    "\u201d \u201c",
]
"""Texts with something between two delimiters, and without."""


def cases() -> Iterator[tuple[str, dict[str, str], Callable[[str], str]]]:
    """Yield each operator with its keywords, and what it stands for in Python."""
    yield "lower", {}, str.lower
    yield "upper", {}, str.upper
    yield "strip", {}, str.strip
    yield "strip", {"side": "both"}, str.strip
    yield "strip", {"side": "left"}, str.lstrip
    yield "strip", {"side": "right"}, str.rstrip
    yield "strip", {"characters": " xa]^-}"}, lambda text: text.strip(" xa]^-}")
    yield "strip", {"side": "right", "characters": "z;"}, lambda text: text.rstrip("z;")
    yield "collapse", {}, lambda text: re.sub(r"\s+", " ", text)
    yield "collapse", {"by": ""}, lambda text: re.sub(r"\s+", "", text)
    yield "collapse", {"by": "\\1"}, lambda text: re.sub(r"\s+", lambda _: "\\1", text)
    kept = "\x1c\x1d\x1e\x1f"
    yield "collapse", {"keep": kept}, lambda text: re.sub(r"[^\S\x1c-\x1f]+", " ", text)
    yield "collapse", {"keep": "\n]^-\\ "}, lambda text: re.sub(r"[^\S\n ]+", " ", text)
    yield "unescape", {}, html.unescape
    yield "replace", {"old": "a", "new": "aa"}, lambda text: text.replace("a", "aa")
    yield "replace", {"old": "aa", "new": ""}, lambda text: text.replace("aa", "")
    yield "replace", {"old": "\\1", "new": "$1"}, lambda text: text.replace("\\1", "$1")
    yield "fill", {"template": "a {}, sharp"}, lambda text: "a " + text + ", sharp"


VECTORS = {"<cat>": 3, "<dog>": 2, "<one>": 1, "Toy": 2}
"""Words of textual inversions, and how many vectors each has."""

EXPANDED = [
    "",
    "a red circle",
    "a <cat>",
    "<cat>",
    "a<cat>and <dog>, <one>",
    "<cat>_1 <cat>",
    "a <CAT> and a Toy or toys, TOY",
    "<cat_1>",
]


def words_tokenizer() -> str:
    """Return CLIP's tokenizer with the words added, as the text of a bundle's file."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=clip())
    tokenizer.add_tokens([word if at == 0 else f"{word}_{at}" for word, n in VECTORS.items() for at in range(n)])
    return str(tokenizer.backend_tokenizer.to_str())


def text_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each case, and its operation, texts and what becomes of them."""
    for operator, keywords, reference in cases():
        name = f"{operator} {json.dumps(keywords)}"
        expected = [reference(text) for text in TEXTS]
        yield name, {"operator": operator, "keywords": keywords, "texts": TEXTS, "expected": expected}
    for start, end in (('"', '"'), ("<<", ">"), ("\u201c", "\u201d")):
        keywords = {"start": start, "end": end}
        between = re.compile(re.escape(start) + "(.*?)" + re.escape(end))
        entry = {"operator": "without", "keywords": keywords, "texts": [t for t in BETWEEN if not between.search(t)]}
        entry |= {"expected": entry["texts"], "refused": [text for text in BETWEEN if between.search(text)]}
        yield f"without {json.dumps(keywords)}", entry
    library = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(words_tokenizer()))
    several = {word: n for word, n in VECTORS.items() if n > 1}
    pairs = [[word, " ".join([word, *(f"{word}_{at}" for at in range(1, n))])] for word, n in several.items()]
    expected = [TextualInversionLoaderMixin().maybe_convert_prompt(text, library) for text in EXPANDED]
    keywords = {"tokenizer": "words.json", "words": pairs}
    yield "expand", {"operator": "expand", "keywords": keywords, "texts": EXPANDED, "expected": expected}
