"""Record the functions of the standard library that pipelines clean texts with, beside the methods of strings."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from diffc.compiler.tracing.symbolic_text import FIX, Derivation, Texts, refusal

SPECIAL = frozenset(".^$*+?{}[]\\|()")
"""Characters that mean something else than themselves in a regular expression."""

RANGES = frozenset("^-[]\\&~|")
"""Characters that mean something else than themselves among those in brackets."""

SPACES = r"\s+"
WHITE_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())

ANYTHING = "(.*?)"
ESCAPED = re.compile(r"\\(\W)")
"""A character behind a backslash that means itself."""

NOTHING: Mapping[str, Callable[[], Any]] = {"findall": list, "finditer": lambda: iter(()), "search": lambda: None}
"""Functions of `EXPRESSIONS` that look for something, and what they return where there is nothing."""

EXPRESSIONS = ("re", "regex")
"""Modules of regular expressions, with functions of the same names."""

COLLAPSE = {"by": " ", "keep": ""}
"""What ``collapse`` does by default."""

REFUSED = {
    **dict.fromkeys(EXPRESSIONS, ("subn", "split", "match", "fullmatch")),
    "ftfy": ("fix_text", "fix_and_explain", "fix_encoding"),
}
"""Functions of modules that the runtime has no operation for."""


FIXES = {"ftfy": "build where ftfy is not installed, if the pipeline does without it (docs/limits.md)"}
"""What helps with a module, where that is not another operation."""


@contextmanager
def recorded_functions(texts: Texts) -> Iterator[None]:
    """Record ``re.sub``, ``html.unescape`` and searches of the request's texts in this block; refuse others."""
    with ExitStack() as stack:
        stack.enter_context(replaced(html, "unescape", _unescaping(texts, html.unescape)))
        for module in (sys.modules[name] for name in EXPRESSIONS if name in sys.modules):
            stack.enter_context(replaced(module, "sub", _substituting(texts, module, module.sub)))
            for function in NOTHING:
                searching = _searching(texts, module, getattr(module, function))
                stack.enter_context(replaced(module, function, searching))
        for module in (sys.modules[name] for name in REFUSED if name in sys.modules):
            for function in REFUSED[module.__name__]:
                refusing = _refusing(texts, getattr(module, function), module.__name__)
                stack.enter_context(replaced(module, function, refusing))
        yield


@contextmanager
def replaced(module: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of a module, or a method of a class, in this block; add it where there is none."""
    before = getattr(module, name, None)
    setattr(module, name, function)
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)


def _unescaping(texts: Texts, real: Callable[[str], str]) -> Callable[[Any], Any]:
    def unescape(s: Any) -> Any:
        derivation = texts.derivation(s)
        return real(s) if derivation is None else texts.value(derivation.then("unescape"))

    return unescape


def _substituting(texts: Texts, module: Any, real: Callable[..., str]) -> Callable[..., Any]:
    def sub(pattern: Any, repl: Any, string: Any, count: int = 0, flags: int = 0, **more: Any) -> Any:
        derivation = texts.derivation(string)
        if derivation is None:
            return real(pattern, repl, string, count=count, flags=flags, **more)
        compiled = module.compile(pattern, flags)
        is_plain = not count and not more and compiled.flags == module.compile(compiled.pattern).flags
        substituted = _substituted(derivation, compiled, repl) if is_plain else None
        if substituted is None:
            raise refusal(f"{module.__name__}.sub({str(compiled.pattern)[:60]!r}, …)", derivation)
        return texts.value(substituted)

    return sub


def _substituted(derivation: Derivation, pattern: Any, by: Any) -> Derivation | None:
    """Return the text after a substitution; None where the runtime has no operation for it."""
    if not isinstance(pattern.pattern, str) or not isinstance(by, str) or "\\" in by:
        return None
    if pattern.pattern == SPACES:
        keep = "".join(character for character in WHITE_SPACE if not pattern.fullmatch(character))
        options = {"by": by, "keep": keep}
        return derivation.then("collapse", **{k: v for k, v in options.items() if v != COLLAPSE[k]})
    if pattern.pattern and SPECIAL.isdisjoint(pattern.pattern):
        return derivation.then("replace", old=pattern.pattern, new=by)
    characters = pattern.pattern[1:-1]
    if pattern.pattern == f"[{characters}]" and RANGES.isdisjoint(characters) and set(by).isdisjoint(characters):
        for character in dict.fromkeys(characters):
            derivation = derivation.then("replace", old=character, new=by)
        return derivation
    return None


def _searching(texts: Texts, module: Any, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that finds nothing in a text of the request, where a program can check that."""

    def search(pattern: Any, string: Any, flags: int = 0, **more: Any) -> Any:
        derivation = texts.derivation(string)
        if derivation is None:
            return real(pattern, string, flags, **more)
        compiled = module.compile(pattern, flags)
        is_plain = not more and not derivation.steps and compiled.flags == module.compile("").flags
        pairs = _pairs(compiled.pattern) if is_plain else None
        if pairs is None:
            raise refusal(f"{module.__name__}.{real.__name__}", derivation)
        texts.assume_absent(derivation, pairs)
        return NOTHING[real.__name__]()

    return search


def _pairs(pattern: str) -> list[tuple[str, str]] | None:
    """Return the literals between which a regular expression looks for anything; None for other expressions."""
    pairs = list[tuple[str, str]]()
    for alternative in pattern.split("|"):
        start, anything, end = alternative.partition(ANYTHING)
        literals = [ESCAPED.sub("", part) for part in (start, end)]
        if not (start and anything and end) or not SPECIAL.isdisjoint("".join(literals)):
            return None
        pairs.append((ESCAPED.sub(r"\1", start), ESCAPED.sub(r"\1", end)))
    return pairs


def _refusing(texts: Texts, real: Callable[..., Any], module: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()):
            derivation = texts.derivation(argument)
            if derivation is not None:
                raise refusal(f"{module}.{real.__name__}", derivation, FIXES.get(module, FIX))
        return real(*args, **kwargs)

    return refuse
