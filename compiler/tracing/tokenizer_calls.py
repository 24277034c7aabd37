"""Record calls of tokenizers, after what the function that is traced has done to the texts of the request."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers
from torch.nn.functional import pad
from torch.utils._python_dispatch import _disable_current_modes

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Literal, Op, Ref, Type, Value
from diffc.compiler.tracing.pipeline_errors import pipeline_line
from diffc.compiler.tracing.recorder import Recorder
from diffc.compiler.tracing.request_inputs import RequestInput, Text
from diffc.compiler.tracing.symbolic_tensor import Symbolic
from diffc.compiler.tracing.symbolic_text import Derivation, Texts, Word, refusal
from diffc.compiler.tracing.text_lengths import LIMIT, TextLengths
from diffc.runtime.program.verify import SIDES

COLUMNS = ("input_ids", "attention_mask")
TYPES = "token_type_ids"

OPTIONS = (
    *("padding", "truncation", "max_length", "padding_side", "add_special_tokens", "return_tensors", "verbose"),
    *("return_attention_mask", "return_token_type_ids", "return_special_tokens_mask", "return_offsets_mapping"),
    "return_length",
)
"""The options of a call that a program's operation has, or that do not change its ids."""

UNRECORDED = ("encode", "encode_plus", "convert_tokens_to_ids")
"""Methods of a tokenizer that return numbers for a string."""

DECODED = "tokens that are decoded"
"""Names the text of tokens: it may be printed, as pipelines warn of what they cut off, and that is all."""

OTHER = "\N{REPLACEMENT CHARACTER}"
"""Stands for the tokens of a text that are no words of the tokenizer's own; a run has as many as it assumes tokens."""


@dataclass(frozen=True)
class _Call:
    """Hold a call of a tokenizer: its name, the token that it pads with, the sides that are not right, and options.

    ``encode`` does the same to one string, and ``limit`` is the length to which the tokenizer cuts texts by default.
    """

    tokenizer: str
    pad: int
    sides: Mapping[str, str]
    options: Mapping[str, Any]
    encode: Callable[[str], Any]
    limit: int

    def check(self, tokenizer: Any) -> None:
        """Refuse a call with another option, whose tokens are no tensors, or lack special tokens of a program."""
        if others := [f"{key}={value!r}" for key, value in self.options.items() if key not in OPTIONS and value]:
            what = f"{self.tokenizer} is called with {', '.join(others)}, which the runtime has no operation for"
            raise CaptureError(what, fix=f"call it with {', '.join(OPTIONS)} only")
        fix = f'call {self.tokenizer} with return_tensors="pt" and its special tokens'
        if self.options.get("return_tensors") != "pt":
            raise CaptureError(f"{self.tokenizer} returns no tensors for a text that only the run knows", fix=fix)
        if not self.options.get("add_special_tokens", True) and tokenizer.num_special_tokens_to_add():
            raise CaptureError(f"{self.tokenizer} is called without its special tokens", fix=fix)

    def most(self, width: int) -> int | None:
        """Return the number of tokens to which the call cuts a text; None where it keeps all."""
        if not self.options.get("truncation"):
            return None
        limit = width if self.is_padded else self.options.get("max_length") or self.limit
        return int(limit) if limit < LIMIT else None

    @property
    def is_padded(self) -> bool:
        """Return whether the tokens have the same number for every text."""
        return self.options.get("padding") == "max_length" and bool(self.options.get("truncation"))

    def least(self, derivation: Derivation) -> int:
        """Count the tokens of an empty text."""
        empty = derivation("", lambda _tokenizer, _text: ())
        encoding = self.encode(empty)
        return int(torch.as_tensor(encoding[COLUMNS[1]]).sum()) if COLUMNS[1] in encoding else 1

    def unpadded(self) -> CaptureError:
        """Return the refusal of tokens whose number depends on the text; it is due only if the program needs them."""
        padding, truncation = self.options.get("padding"), self.options.get("truncation")
        return CaptureError(
            f"{self.tokenizer} is called with padding={padding!r}, truncation={truncation!r}:"
            " the text would decide the shape",
            where=pipeline_line(traceback.extract_stack()),
            fix='call it with padding="max_length", truncation=True and a max_length',
        )


class TextCall(NamedTuple):
    """Hold a call of a tokenizer as it was made: the texts, what they derive from (or themselves), and the line."""

    tokenizer: str
    text: Any
    sources: tuple[Derivation | str, ...]
    line: str


Receive = Callable[[str, Any], Any]
"""Takes the name of a tokenizer and the text, or texts, of a call, and returns those to encode."""


@dataclass(frozen=True)
class RequestTexts:
    """Hold what stands for the texts of the request in a run.

    ``proved`` are derivations to record in the place of others. ``probes`` are real texts to run with, by input, and
    ``receive`` takes the calls of tokenizers then. ``markers`` are the numbers of tokens that the run assumes.
    """

    symbols: Texts
    proved: Mapping[Derivation, Derivation] = field(default_factory=dict)
    probes: Mapping[str, str] | None = None
    receive: Receive | None = None
    markers: Sequence[int] = ()


class TokenizerCalls:
    """Record the calls of tokenizers with texts of the request; other texts are encoded as they always are."""

    def __init__(self, recorder: Recorder, inputs: Mapping[str, RequestInput], texts: RequestTexts) -> None:
        self.recorder, self.texts, self.proved, self.probes = recorder, texts.symbols, texts.proved, texts.probes
        self.receive = texts.receive or self._note
        self.batches = {key: item.batch for key, item in inputs.items() if isinstance(item, Text)}
        self.calls, self.unpadded, self.counts = list[TextCall](), dict[str, CaptureError](), list[str]()
        self.names, self.open = dict[Derivation, str](), dict[str, str]()
        self.lengths, self.counted = TextLengths(texts.markers), dict[str, str]()

    @property
    def unpadded_lines(self) -> list[str]:
        """List the lines of the calls that return as many tokens as a text has."""
        return [*self.open.values(), *(str(refusal.where) for refusal in self.unpadded.values()), *self.counts]

    @property
    def elsewhere(self) -> list[tuple[int, ...]]:
        """List other numbers of tokens that the texts may have; none where no call returns as many as a text has."""
        return self.lengths.elsewhere if self.unpadded_lines else []

    @property
    def request(self) -> dict[str, list[Any]]:
        """List what stands for the texts of each input."""
        if self.probes is not None:
            return {key: [self.probes[key]] * batch for key, batch in self.batches.items()}
        return {key: [self.texts.value(Derivation(key))] * batch for key, batch in self.batches.items()}

    def checked(self) -> list[Op]:
        """Return the operations of the run, which first check that texts lack what the run found absent in them."""
        ops, names = list(self.recorder.ops), dict[str, str]()
        for key, steps in self.texts.absent.items():
            if not any(key in op.reads() for op in ops):
                raise CaptureError(f"what stands in {key} decides what is computed, but its tokens do not")
            names[key] = self._text(Derivation(key, tuple(steps)))
        return [*self.recorder.ops[len(ops) :], *(op.renamed(names) for op in ops)]

    def _note(self, tokenizer: str, text: Any) -> Any:
        sources = tuple(self._source(item) for item in _listed(text))
        self.calls.append(TextCall(tokenizer, text, sources, pipeline_line(traceback.extract_stack())))
        return text

    def _source(self, text: Any) -> Derivation | str:
        derivation = self.texts.derivation(text)
        return text if derivation is None else derivation

    @contextmanager
    def recorded(self, name: str, tokenizer: Any) -> Iterator[None]:
        """Record the calls of a tokenizer in this block."""
        real = type(tokenizer)

        def call(this: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
            text = self.receive(name, text)
            options = kwargs | {f"argument {at}": value for at, value in enumerate(args, start=2)}
            sources = [self._source(item) for item in _listed(text)]
            with _disable_current_modes(), self.texts.suspended():
                strings = [self._string(source) for source in sources]
                several = isinstance(text, list | tuple)
                encoding = real.__call__(this, strings if several else strings[0], *args, **kwargs)
            if any(isinstance(source, Derivation) for source in sources):
                encode = partial(_encode, real, this, args, kwargs)
                limit = getattr(this, "model_max_length", LIMIT)
                recorded = _Call(name, this.pad_token_id, _left_sides(this, kwargs), options, encode, limit)
                recorded.check(this)
                present = [column for column in COLUMNS if column in encoding]
                columns = self._encoded(recorded, sources, [encoding[column] for column in present])
                _replace(encoding, dict(zip(present, columns, strict=True)))
            return encoding

        methods: dict[str, Any] = {"__call__": call}
        if hasattr(real, "tokenize"):
            methods |= {"tokenize": self._tokenizing(name, real)}
        if hasattr(real, "apply_chat_template"):
            methods |= {"apply_chat_template": _templating(real.apply_chat_template)}
        methods |= {"batch_decode": self._decoding(real)} if hasattr(real, "batch_decode") else {}
        methods |= {
            key: self._refusing(f"{name}.{key}", getattr(real, key)) for key in UNRECORDED if hasattr(real, key)
        }
        tokenizer.__class__ = type(real.__name__, (real,), methods)
        try:
            yield
        finally:
            tokenizer.__class__ = real

    def _tokenizing(self, name: str, real: type) -> Callable[..., Any]:
        def tokenize(this: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
            derivation = self.texts.derivation(text)
            if derivation is None:
                return real.tokenize(this, text, *args, **kwargs)  # type: ignore[attr-defined]
            self.counts.append(pipeline_line(traceback.extract_stack()))
            words = [Word(word, derivation, name) for word in sorted(this.added_tokens_encoder)]
            return itertools.chain(words, itertools.repeat(Word(OTHER, derivation, name), sum(self.lengths.markers)))

        return tokenize

    def _decoding(self, real: type) -> Callable[..., Any]:
        def batch_decode(this: Any, sequences: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(sequences, Symbolic):
                return [self.texts.value(Derivation(DECODED)) for _ in range(sequences.fake.shape[0])]
            return real.batch_decode(this, sequences, *args, **kwargs)  # type: ignore[attr-defined]

        return batch_decode

    def _refusing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def method(this: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
            derivation = self.texts.derivation(text)
            if derivation is not None:
                raise refusal(name, derivation)
            return real(this, text, *args, **kwargs)

        return method

    def _string(self, source: Derivation | str) -> str:
        """Return a string to encode in the place of a text, with its template around a short word."""
        if isinstance(source, str):
            return source
        return source("a", lambda _tokenizer, _text: ())

    def _encoded(
        self, call: _Call, sources: Sequence[Derivation | str], columns: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Return the columns [texts, tokens] with symbolic rows where the texts come from the request."""
        parts, start = list[Sequence[torch.Tensor]](), 0
        grouped = (source if isinstance(source, Derivation) else None for source in sources)
        for derivation, group in itertools.groupby(grouped):
            rows = slice(start, start + len(list(group)))
            start = rows.stop
            real = [column[rows] for column in columns]
            parts.append(real if derivation is None else self._symbolic(call, derivation, real))
        if len(parts) == 1:
            return parts[0]
        by_column = [*zip(*parts, strict=True)]
        if not call.is_padded:
            on_left, fills = "padding_side" in call.sides, (call.pad, 0)
            by_column = [_to_longest(texts, fill, on_left) for texts, fill in zip(by_column, fills, strict=False)]
        return [torch.cat(texts) for texts in by_column]

    def _symbolic(self, call: _Call, derivation: Derivation, real: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Record an operation for texts of one input. One text may be repeated, as one for several images is."""
        key = derivation.key
        if key not in self.batches:
            raise refusal("the tokens", derivation)
        batch, rows = self.batches[key], len(real[0])
        copies = rows if batch == 1 else 1
        if rows != batch * copies:
            what = f"{call.tokenizer} is given {rows} texts made of {key}"
            raise CaptureError(what, fix="give every text of the batch once")
        results, most = self._columns(call, derivation, real)
        derivation = self.proved.get(derivation, derivation)
        *steps, last = derivation.steps or (None,)
        is_filled = last is not None and last[0] == "fill"
        text = self._text(replace(derivation, steps=tuple(steps)) if is_filled else derivation)
        attrs: list[tuple[str, Literal]] = [("tokenizer", call.tokenizer), ("length", most)]
        attrs += [("pad", call.pad), *(last[1] if last is not None and is_filled else ()), *call.sides.items()]
        self.recorder.append("tokenize", (Ref(text),), attrs, results)
        labels = [value.label for value in results]
        if call.most(most) is None or not call.is_padded and self.batches[key] > 1:
            self.unpadded |= dict.fromkeys(labels, call.unpadded())
        elif not call.is_padded:
            self.open |= dict.fromkeys(labels, pipeline_line(traceback.extract_stack()))
        return [torch.cat([column] * copies) for column in results] if copies > 1 else results

    def _columns(self, call: _Call, derivation: Derivation, real: Sequence[torch.Tensor]) -> tuple[list[Symbolic], int]:
        """Return tokens and mask of a text, for a batch of it, and the most tokens that it has."""
        with _disable_current_modes(), self.texts.suspended():
            width = real[0].shape[-1]
            most = call.most(width)
            length = self.lengths.length((call.tokenizer, derivation), lambda: call.least(derivation), most)
            count = length.width(most)
            width = width if call.is_padded else count
            columns = [column.new_zeros((self.batches[derivation.key], width)) for column in real]
            fakes = [self.recorder.fake_mode.from_tensor(column) for column in columns]
        results = [self.recorder.value(fake, prefix) for fake, prefix in zip(fakes, ("ids", "mask"), strict=False)]
        results[0].tokens = call.tokenizer, derivation, count, *call.sides.items()
        for mask in results[1:]:
            mask.known = self.lengths.mask(columns[1], count, width=width, on_left="padding_side" in call.sides)
        for value in results if most is None else ():
            value.sized = self.lengths.sized(length, len(columns[0]))
        if most is not None and length.name not in self.counted.values() and count == length.at:
            self.counted[results[0].label] = length.name
        return results, most or width

    def _text(self, derivation: Derivation) -> str:
        """Return the name of a text, after recording the operations that it needs."""
        if not derivation.steps:
            return derivation.key
        if derivation not in self.names:
            *steps, (operator, attrs) = derivation.steps
            source = self._text(replace(derivation, steps=tuple(steps)))
            result = Value(f"text{len(self.names)}", Type("text", (self.batches[derivation.key],)))
            self.recorder.ops.append(Op(operator, (Ref(source),), attrs, results=(result,)))
            self.names[derivation] = result.name
        return self.names[derivation]


def _to_longest(texts: Sequence[torch.Tensor], fill: int, on_left: bool) -> tuple[torch.Tensor, ...]:
    """Pad the rows of several texts to the longest."""
    for text in (text for text in texts if isinstance(text, Symbolic)):
        text.sized = None  # the longest text decides the sizes of all
    lacking = [max(text.shape[-1] for text in texts) - text.shape[-1] for text in texts]
    sides = [(count, 0) if on_left else (0, count) for count in lacking]
    return tuple(pad(text, side, value=fill) for text, side in zip(texts, sides, strict=True))


def _replace(encoding: Any, columns: Mapping[str, torch.Tensor]) -> None:
    """Replace all that a tokenizer has returned for the string in the place of a text; types of tokens stay zero."""
    for column in list(encoding):
        if column == TYPES and not torch.as_tensor(encoding[column]).any():
            encoding[column] = torch.zeros(columns[COLUMNS[0]].shape, dtype=torch.int64)
        elif column not in columns:
            del encoding[column]
    encoding.update(columns)
    if isinstance(encoding, transformers.BatchEncoding):
        encoding._encodings = None


def _encode(real: type, tokenizer: Any, args: Sequence[Any], options: Mapping[str, Any], text: str) -> Any:
    return real.__call__(tokenizer, [text], *args, **options)


def _templating(real: Callable[..., Any]) -> Callable[..., Any]:
    def apply_chat_template(this: Any, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        return real(this, _with_strings(conversation), *args, **kwargs)

    return apply_chat_template


def _with_strings(messages: Any) -> Any:
    """Return messages with strings for their texts: what fills a chat template takes no others."""
    if isinstance(messages, str):
        return str(messages)
    if isinstance(messages, Mapping):
        return {key: _with_strings(item) for key, item in messages.items()}
    return [_with_strings(item) for item in messages] if isinstance(messages, list | tuple) else messages


def _listed(text: Any) -> list[Any]:
    return list(text) if isinstance(text, list | tuple) else [text]


def _left_sides(tokenizer: Any, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the sides, of padding and truncation, on which a call of the tokenizer works on the left."""
    sides = {side: options.get(side) or getattr(tokenizer, side, "right") for side in SIDES}
    return {side: str(value) for side, value in sides.items() if value != "right"}
