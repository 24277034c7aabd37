"""Follow a text of the request through a trace: what is done to it is recorded, and everything else is refused.

A `SymbolicText` has the class of a string, and is none: functions that are written in C
refuse it, so nothing changes a text unseen. Where it is formatted into a string, a marker stands for it, which
`Texts.derivation` finds again.

    text.lower().strip()             Derivation("prompt", (lower, strip))
    f"a photo of {text}"             Derivation("prompt", (fill with "a photo of {}",)), once its marker is found
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from diffc.compiler.errors import CaptureError
from diffc.runtime.program.texts import Tokens, transform

MARKER = "\ufdd0{}\ufdd1"
"""Stands for a numbered text in a string.

Its first and last characters are noncharacters, which Unicode keeps for a process's own use: no other text holds them.
"""

MARKERS = re.compile("\ufdd0([0-9]+)([a-z]?)\ufdd1")

FIX = "use lower, upper, strip, replace, re.sub for white space or fixed words, or html.unescape"

Step = tuple[str, tuple[tuple[str, Any], ...]]
"""A text operator and its keywords."""


@dataclass(frozen=True)
class Derivation:
    """State from which text of the request a text comes, and what was done to it, in order."""

    key: str
    steps: tuple[Step, ...] = ()

    def then(self, operator: str, **attrs: Any) -> Derivation:
        """Add a step."""
        return replace(self, steps=(*self.steps, (operator, tuple(attrs.items()))))

    def __call__(self, text: str, tokens: Tokens) -> str:
        """Do the same to a text."""
        for operator, attrs in self.steps:
            text = transform(operator, dict(attrs), text, tokens)
        return text

    def expanded(self, tokenized: Derivation, tokenizer: str, word: str, expansion: str) -> Derivation | None:
        """Replace a word where it is a token of ``tokenized``; None if this text is no longer that one."""
        words = dict[str, str]()
        if self != tokenized:
            *steps, (operator, pairs) = self.steps or (("", ()),)
            attrs = dict(pairs)
            if operator != "expand" or replace(self, steps=tuple(steps)) != tokenized:
                return None
            words = dict(attrs["words"])
        return tokenized.then("expand", tokenizer=tokenizer, words=tuple(sorted({**words, word: expansion}.items())))


class Word(str):
    """Name a token that a text may hold; ``tokenized`` is that text."""

    tokenized: Derivation
    tokenizer: str

    def __new__(cls, word: str, tokenized: Derivation, tokenizer: str) -> Word:
        """Name a token of a tokenizer."""
        token = super().__new__(cls, word)
        token.tokenized, token.tokenizer = tokenized, tokenizer
        return token


class Texts:
    """Number the texts that stand in strings.

    ``are_exact`` turns false where a string was made of a text: what is done to a string is not recorded, so what
    becomes of it has to be proved. ``as_strings`` makes strings of all texts from the start. ``absent`` are, for the
    text of an input, the starts and ends between which the function looked for something, and got nothing.
    """

    def __init__(self, *, as_strings: bool = False) -> None:
        self.derivations = list[Derivation]()
        self.as_strings, self.are_exact = as_strings, not as_strings
        self.absent = dict[str, dict[Step, None]]()
        self._suspended = False

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Take markers for ordinary texts in this block."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    def value(self, derivation: Derivation) -> Any:
        """Return what stands for a text in the function that is traced."""
        return self.marker(derivation) if self.as_strings else SymbolicText(derivation, self)

    def assume_absent(self, derivation: Derivation, pairs: Iterable[tuple[str, str]]) -> None:
        """Assume that a text of the request has nothing between these starts and ends; a program checks it."""
        steps = [("without", (("start", start), ("end", end))) for start, end in pairs]
        self.absent[derivation.key] = self.absent.get(derivation.key, {}) | dict.fromkeys(steps)

    def marker(self, derivation: Derivation, part: str = "") -> str:
        """Return the string that stands for a text."""
        if derivation not in self.derivations:
            self.derivations.append(derivation)
        return MARKER.format(f"{self.derivations.index(derivation)}{part}")

    def derivation(self, text: Any) -> Derivation | None:
        """Return what a text, or a string with a marker, is derived from; None for other strings.

        Raises `CaptureError` for a string that holds several texts, or one several times.
        """
        if type(text) is SymbolicText:
            return text.derivation
        markers = list(MARKERS.finditer(text)) if isinstance(text, str) and not self._suspended else []
        if not markers:
            return None
        derivation, part = self.derivations[int(markers[0][1])], markers[0][2]
        start, end = markers[0].start(), markers[-1].end()
        if part:
            derivation = _joined(derivation, text, markers)
        elif len(markers) > 1:
            raise CaptureError("a text is made of several texts of the request", fix="tokenize each on its own")
        template = f"{text[:start]}{{}}{text[end:]}"
        if template.count("{}") > 1:
            raise CaptureError("the template of a text holds {} itself", fix="write it otherwise")
        return derivation if template == "{}" else derivation.then("fill", template=template)


def _joined(derivation: Derivation, text: str, markers: list[re.Match[str]]) -> Derivation:
    """Return what the words of a text are, joined by what stands between the first and the second."""
    if [(m[1], m[2]) for m in markers] != [(markers[0][1], "a"), (markers[0][1], "b")]:
        raise CaptureError("only some words of a text are used", fix="use all of them, joined in order")
    by = text[markers[0].end() : markers[1].start()]
    words = derivation.then("strip")
    return words.then("collapse") if by == " " else words.then("collapse", by=by)


class SymbolicText:
    """Record the methods of a string that the runtime has operations for."""

    def __init__(self, derivation: Derivation, texts: Texts) -> None:
        self.derivation, self.texts = derivation, texts

    def _then(self, operator: str, **attrs: Any) -> SymbolicText:
        return SymbolicText(self.derivation.then(operator, **attrs), self.texts)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return str

    def __deepcopy__(self, _: object) -> SymbolicText:
        return self

    def __bool__(self) -> bool:
        self.texts.are_exact = False  # an empty text has to be proved to come to the same
        return True

    def __str__(self) -> str:
        self.texts.are_exact = False
        return self.texts.marker(self.derivation)

    def __format__(self, specification: str) -> str:
        if specification not in ("", "s"):
            self._refuse(f"the format {specification}")
        return str(self)

    def lower(self) -> SymbolicText:
        """Record lower case."""
        return self._then("lower")

    def upper(self) -> SymbolicText:
        """Record upper case."""
        return self._then("upper")

    def strip(self, characters: str | None = None) -> SymbolicText:
        """Record that both ends are stripped."""
        return self._strip({}, characters)

    def lstrip(self, characters: str | None = None) -> SymbolicText:
        """Record that the start is stripped."""
        return self._strip({"side": "left"}, characters)

    def rstrip(self, characters: str | None = None) -> SymbolicText:
        """Record that the end is stripped."""
        return self._strip({"side": "right"}, characters)

    def _strip(self, side: Mapping[str, str], characters: str | None) -> SymbolicText:
        return self._then("strip", **side, **({} if characters is None else {"characters": str(characters)}))

    def replace(self, old: str, new: str, count: int = -1) -> SymbolicText:
        """Record a replacement; one of a token that the text may hold is made where the text holds it."""
        if count != -1 or type(new) not in (str, Word) or type(old) not in (str, Word) or not old:
            self._refuse("a replacement of some occurrences, or by another text")
        if not isinstance(old, Word):
            return self._then("replace", old=old, new=str(new))
        if old == new:
            return self
        expanded = self.derivation.expanded(old.tokenized, old.tokenizer, str(old), str(new))
        if expanded is None:
            raise CaptureError(
                f"the token {old} of one text is replaced in another", fix="tokenize the text that is changed"
            )
        self.texts.are_exact = False
        return SymbolicText(expanded, self.texts)

    def split(self, separator: str | None = None, maxsplit: int = -1) -> list[str]:
        """Record a cut at white space; the words can be joined again."""
        if separator is not None or maxsplit != -1:
            self._refuse("split at a separator")
        self.texts.are_exact = False
        return [self.texts.marker(self.derivation, part) for part in "ab"]

    def __add__(self, suffix: Any) -> Any:
        return NotImplemented if type(suffix) is not str else self._filled("{}" + suffix)

    def __radd__(self, prefix: Any) -> Any:
        return NotImplemented if type(prefix) is not str else self._filled(prefix + "{}")

    def _filled(self, template: str) -> SymbolicText:
        if template.count("{}") > 1:
            raise CaptureError("the template of a text holds {} itself", fix="write it otherwise")
        return self if template == "{}" else self._then("fill", template=template)

    def __eq__(self, operand: object) -> bool:
        if operand is self:
            return True
        return self._refuse("a comparison") if isinstance(operand, str) else False

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(name)

    def _refuse(self, what: str) -> NoReturn:
        raise refusal(what, self.derivation)


def refusal(what: str, derivation: Derivation, fix: str = FIX) -> CaptureError:
    """Refuse what the runtime has no operation for."""
    return CaptureError(f"{what} of {derivation.key}, a text that only the run knows", fix=fix)


def _refusing(what: str) -> Any:
    def refuse(self: SymbolicText, *_: Any) -> NoReturn:
        raise refusal(what, self.derivation)

    return refuse


REFUSED = {
    "len": "the length",
    "iter": "the characters",
    "getitem": "characters",
    "contains": "what occurs",
    "hash": "a look-up",
    **dict.fromkeys(("lt", "le", "gt", "ge"), "a comparison"),
    **dict.fromkeys(("mul", "rmul", "mod", "rmod"), "an operator"),
}
"""Operators of strings that the runtime has no operation for, and what they ask for."""

for _name, _what in REFUSED.items():
    setattr(SymbolicText, f"__{_name}__", _refusing(_what))
