"""Prove what becomes of the request's texts, where a trace could not record it: run the function on real texts.

The function runs with each probe up to its last call of a tokenizer, with some to its end, and what it tokenizes is
compared with what the recorded operations make of the probe. Where that differs, a short sequence of text operations
that explains every probe takes the place of what was recorded; where there is none, the function is refused.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Op
from diffc.compiler.tracing.symbolic_text import FIX, Derivation, Step
from diffc.compiler.tracing.tokenizer_calls import Receive, TextCall
from diffc.runtime.program.texts import Tokens

EMPTY, LONG = "", "Very LONG, and " * 600 + "the End."

PROBES = (
    "a small red circle",
    EMPTY,
    "  \t A  RED\u00a0\u2003circle,\r\n\n LEFT-of  a <BLUE> square!  \u3000",
    '"It\'s" 1st &amp; 22nd &lt;no. 3&gt; &amp;amp; &quot;x&quot; &eacute;&#233;&#x1F534; 100% +1 %20 @you (c)...',
    "\u00c9T\u00c9 \u00e9t\u00e9 e\u0301 \u1e9e\u00df \u0130I\u0131 \ufb01 \u2163 \u039f\u03a3 \u041a\u0420\u0423",
    "\u9752\u3044 \uff21 \u201cq\u201d \u2018s\u2019 \u2026 \u2014 \u0645\u0631\u062d\u0628",
    "\U0001f534\U0001f469\u200d\U0001f469\u200d\U0001f467 \u200b\ufeff\u00ad",
    "_u_ -d- (round:1.3) [sq] {b} a|b a/b a\\b *c* ~t~ $5 ^2 `k` x=y;z\x1c\x85\u2028.",
    LONG,
    "((((a)))) [[[[b]]]] {{{{c}}}} <<<<d>>>> !!!!!! ?????? ...... ------ ______ 12345678901234567890 aaaaaaaaaaaa",
    "https://www.example.com/A?b=C&d=%41 photo_of-CAT.JPG 1920x1080 12.5 1234567 10.0.0.1 @name #123456",
)
"""Capitals, white space, entities, accents, ligatures, other scripts, emoji, punctuation, addresses, repetition."""

VOCABULARY: tuple[Step, ...] = (
    ("lower", ()),
    ("strip", ()),
    ("collapse", ()),
    ("unescape", ()),
    ("strip", (("side", "left"),)),
    ("strip", (("side", "right"),)),
    ("collapse", (("keep", "\x1c\x1d\x1e\x1f"),)),
    ("upper", ()),
)
"""What a function may do to a text unseen, in at most `STEPS` steps."""

STEPS = 3
LITERAL = 32
"""Characters that a string of the function's code has at most, to stand in a probe."""

TO_THE_END = (EMPTY, LONG)
"""Probes for which the function must do the same after its last call of a tokenizer, too."""

Run = Callable[[Mapping[str, str], Receive], Sequence[Op]]
"""Runs the function with texts, by input, and with what receives each call of a tokenizer."""

Examples = list[tuple[str, str]]
"""Probes, and what became of each."""


class _LastCall(BaseException):
    """End a run after its last call of a tokenizer."""


@dataclass(frozen=True)
class Recorded:
    """Hold what the trace recorded: the calls of tokenizers, all operations, and the inputs that are texts.

    ``absent`` are the checks of each text for what the program does not take.
    """

    calls: Sequence[TextCall]
    ops: Sequence[Op]
    keys: Sequence[str]
    absent: Mapping[str, Iterable[Step]] = field(default_factory=dict)

    def probe(self, key: str, text: str) -> str:
        """Return a text that the program takes: without the starts of what must be absent."""
        for _, attrs in self.absent.get(key, ()):
            text = text.replace(dict(attrs)["start"], "")
        return text


def prove(recorded: Recorded, run: Run, tokens: Tokens) -> dict[Derivation, Derivation]:
    """Return a proved derivation for each that is wrong. Raises `CaptureError` with a text that none explains."""
    examples, literals = dict[Derivation, Examples](), set[str]()
    with _literals(literals):
        _observe(recorded, run, PROBES[0], examples)
    words = [word for derivation in examples for word in _words(derivation)]
    about_words = [f"{word} a {word}, {word.upper()}{word}_1" for word in words]
    probes = (*PROBES[1:], " ".join(sorted(literals)), *about_words)
    for probe in probes if recorded.calls else TO_THE_END:
        _observe(recorded, run, probe, examples)
    proved = dict[Derivation, Derivation]()
    for call in recorded.calls:
        for source in call.sources:
            if isinstance(source, Derivation) and not _explains(source, examples[source], tokens):
                proved[source] = _explanation(source, examples[source], tokens, call.line)
    return proved


def _observe(recorded: Recorded, run: Run, probe: str, examples: dict[Derivation, Examples]) -> None:
    """Run the function with a probe for each input, and note what it tokenizes."""
    texts = {
        key: recorded.probe(key, probe) + (f" {at}" if at and probe else "") for at, key in enumerate(recorded.keys)
    }
    seen = list[Sequence[Any]]()

    def receive(tokenizer: str, text: Any) -> Any:
        strings = text if isinstance(text, list | tuple) else [text]
        call = recorded.calls[len(seen)] if len(seen) < len(recorded.calls) else None
        if call is None or (tokenizer, len(strings)) != (call.tokenizer, len(call.sources)):
            raise _differs(probe)
        seen.append(strings)
        if len(seen) == len(recorded.calls) and probe not in TO_THE_END:
            raise _LastCall
        return call.text

    with suppress(_LastCall):
        if list(run(texts, receive)) != list(recorded.ops):
            raise _differs(probe)
    for call, strings in zip(recorded.calls, seen, strict=True):
        for source, string in zip(call.sources, strings, strict=True):
            if isinstance(source, Derivation):
                examples.setdefault(source, []).append((texts[source.key], str(string)))
            elif source != string:
                raise _differs(probe)


def _differs(probe: str) -> CaptureError:
    what = f"what is computed, or tokenized, depends on a text of the request: it is something else for {probe[:60]!r}"
    return CaptureError(what, fix="compute the same for every text")


def _words(derivation: Derivation) -> list[str]:
    return [word for operator, attrs in derivation.steps if operator == "expand" for word, _ in dict(attrs)["words"]]


def _explains(derivation: Derivation, examples: Examples, tokens: Tokens) -> bool:
    return all(derivation(text, tokens) == string for text, string in examples)


def _explanation(derivation: Derivation, examples: Examples, tokens: Tokens, line: str) -> Derivation:
    """Find the shortest steps, at the end or before the last template, that explain every example."""
    shortest_first = sorted(examples, key=lambda example: len(example[0]))
    for count in range(1, STEPS + 1):
        for steps in itertools.product(VOCABULARY, repeat=count):
            for candidate in _candidates(derivation, steps):
                if _explains(candidate, shortest_first, tokens):
                    return candidate
    text, string = next(pair for pair in shortest_first if derivation(pair[0], tokens) != pair[1])
    expected = derivation(text, tokens)
    start = max(0, len(os.path.commonprefix([expected, string])) - 10)
    became = f"{expected[start : start + 60]!r} becomes {string[start : start + 60]!r}"
    what = f"{derivation.key} is changed by what the runtime has no operation for: {became}"
    raise CaptureError(what, where=line, fix=FIX)


def _candidates(derivation: Derivation, steps: Collection[Step]) -> Iterator[Derivation]:
    yield replace(derivation, steps=(*derivation.steps, *steps))
    if derivation.steps and derivation.steps[-1][0] == "fill":
        yield replace(derivation, steps=(*derivation.steps[:-1], *steps, derivation.steps[-1]))


@contextmanager
def _literals(literals: set[str]) -> Iterator[None]:
    """Collect the short strings in the code that runs in this block, and the patterns that it applies.

    A word that a function looks for stands there, and no other probe would hold it.
    """
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))

    def note(value: Any) -> None:
        if isinstance(value, str) and 0 < len(value) <= LITERAL and value.isprintable():
            literals.add(value)

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "c_call":
            note(getattr(getattr(argument, "__self__", None), "pattern", None))
        elif event == "call" and not frame.f_code.co_filename.startswith(ours):
            for value in (*frame.f_code.co_consts, *frame.f_locals.values()):
                note(value)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)
