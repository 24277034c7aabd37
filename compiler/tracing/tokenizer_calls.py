"""Record calls of tokenizers: a marker stands where the request's text will stand, perhaps inside a template."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Literal, Ref
from diffc.compiler.tracing.pipeline_errors import pipeline_line
from diffc.compiler.tracing.recorder import Recorder
from diffc.compiler.tracing.request_inputs import RequestInput, Text
from diffc.runtime.program.verify import SIDES

MARKER = "\ufdd0{}\ufdd1"
"""Stands for a numbered text of the request while a pipeline is traced.

Its first and last characters are noncharacters, which Unicode keeps for a process's own use: no other text holds them.
"""

COLUMNS = ("input_ids", "attention_mask")

Source = tuple[str, str]
"""The input of the request that a text is made of, and the template that it fills."""


@dataclass(frozen=True)
class _Call:
    """Hold a call of a tokenizer: its name, the token that it pads with, the sides that are not right, and options."""

    tokenizer: str
    pad: int
    sides: Mapping[str, str]
    options: Mapping[str, Any]

    def unpadded(self) -> CaptureError | None:
        """Return the refusal of tokens whose number depends on the text; it is due only if the program needs them."""
        padding, truncation = self.options.get("padding"), self.options.get("truncation")
        if padding == "max_length" and truncation:
            return None
        return CaptureError(
            f"{self.tokenizer} is called with padding={padding!r}, truncation={truncation!r}:"
            " the text would decide the shape",
            where=pipeline_line(traceback.extract_stack()),
            fix='call it with padding="max_length", truncation=True and a max_length',
        )


class TokenizerCalls:
    """Record the calls of tokenizers with texts of the request; other texts are encoded as they always are."""

    def __init__(self, recorder: Recorder, inputs: Mapping[str, RequestInput]) -> None:
        self.recorder = recorder
        self.batches = {key: item.batch for key, item in inputs.items() if isinstance(item, Text)}
        self.markers = {MARKER.format(i): key for i, key in enumerate(inputs) if key in self.batches}
        self.unpadded = dict[str, CaptureError]()

    @property
    def texts(self) -> dict[str, list[str]]:
        """List the markers that stand for the texts of each input."""
        return {key: [marker] * self.batches[key] for marker, key in self.markers.items()}

    @contextmanager
    def recorded(self, name: str, tokenizer: Any) -> Iterator[None]:
        """Record the calls of a tokenizer in this block."""
        real = type(tokenizer)

        def call(this: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes():
                encoding = real.__call__(this, text, *args, **kwargs)
            texts = [text] if isinstance(text, str) else list(text)
            sources = [self._source(item) for item in texts]
            if any(sources) and kwargs.get("return_tensors") == "pt":
                columns = self._encoded(
                    _Call(name, this.pad_token_id, _left_sides(this, kwargs), kwargs),
                    sources,
                    [encoding[c] for c in COLUMNS],
                )
                for column, tensor in zip(COLUMNS, columns, strict=True):
                    encoding[column] = tensor
            return encoding

        tokenizer.__class__ = type(real.__name__, (real,), {"__call__": call})
        try:
            yield
        finally:
            tokenizer.__class__ = real

    def _source(self, text: str) -> Source | None:
        """Return what a text is made of; None where it does not come from the request."""
        sources = ((key, text.replace(marker, "{}")) for marker, key in self.markers.items() if marker in text)
        return next(sources, None)

    def _encoded(
        self, call: _Call, sources: Sequence[Source | None], columns: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Return the columns [texts, tokens] with symbolic rows where the texts come from the request."""
        parts, start = list[Sequence[torch.Tensor]](), 0
        for source, group in itertools.groupby(sources):
            rows = slice(start, start + len(list(group)))
            start = rows.stop
            real = [column[rows] for column in columns]
            parts.append(real if source is None else self._symbolic(call, source, real))
        return parts[0] if len(parts) == 1 else [torch.cat(column) for column in zip(*parts, strict=True)]

    def _symbolic(self, call: _Call, source: Source, real: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Record an operation for texts of one input. One text may be repeated, as one for several images is."""
        key, template = source
        batch, count = self.batches[key], len(real[0])
        copies = count if batch == 1 else 1
        if count != batch * copies:
            what = f"{call.tokenizer} is given {count} texts made of {key}"
            raise CaptureError(what, fix="give every text of the batch once")
        with _disable_current_modes():
            fakes = [self.recorder.fake_mode.from_tensor(column[:batch]) for column in real]
        results = [self.recorder.value(fake, prefix) for fake, prefix in zip(fakes, ("ids", "mask"), strict=True)]
        attrs: list[tuple[str, Literal]] = [("tokenizer", call.tokenizer), ("length", real[0].shape[-1])]
        attrs += [("pad", call.pad), *([("template", template)] if template != "{}" else []), *call.sides.items()]
        self.recorder.append("tokenize", (Ref(key),), attrs, results)
        if refusal := call.unpadded():
            self.unpadded |= dict.fromkeys((value.label for value in results), refusal)
        return [torch.cat([column] * copies) for column in results] if copies > 1 else results


def _left_sides(tokenizer: Any, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the sides, of padding and truncation, on which a call of the tokenizer works on the left."""
    sides = {side: options.get(side) or getattr(tokenizer, side, "right") for side in SIDES}
    return {side: str(value) for side, value in sides.items() if value != "right"}
