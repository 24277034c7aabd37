"""Turn texts into token ids as transformers does with ``padding="max_length", truncation=True``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray

from diffc.runtime.errors import BundleError, DiffcWarning, RequestError


class Tokenizer:
    """Hold one tokenizer of a bundle. Raises `BundleError` for what the tokenizers library cannot read."""

    def __init__(self, data: bytes, name: str) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises Exception itself
            what = f"tokenizer {name} cannot be read: {str(error)[:200]}"
            raise BundleError(what, fix="build the bundle again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(
        self, texts: Sequence[str], *, length: int, pad: int, template: str = "{}"
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Encode texts as ids and attention mask, both int64[len(texts), length], padded on the right with ``pad``.

        What does not fit is cut with a `DiffcWarning`. Raises `RequestError` for a text that cannot be encoded.
        """
        rows = [self._encode(template.replace("{}", text), length) for text in texts]
        ids = np.full((len(rows), length), pad, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)], mask[at, : len(row)] = row, 1
        return ids, mask

    def _encode(self, text: str, length: int) -> list[int]:
        check_text(text)
        special = self._tokenizer.num_special_tokens_to_add(False)
        if special > length:
            raise BundleError(f"{special} special tokens do not fit {length} tokens", fix="build the bundle again")
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        room = length - special
        if len(encoding) > room:
            cut = text[encoding.offsets[room][0] :]
            warnings.warn(f"the prompt is longer than {length} tokens; cut off: {cut!r}", DiffcWarning, stacklevel=2)
            encoding.truncate(room)
        return list(self._tokenizer.post_process(encoding, None, True).ids)


def check_text(text: object) -> None:
    """Refuse what is no text that a tokenizer takes. Raises `RequestError`."""
    if not isinstance(text, str):
        raise RequestError(f"the prompt is a {type(text).__name__}", fix="give a text, or a list of texts")
    if "\0" in text:
        raise RequestError(f"the prompt holds a NUL byte: {text[:80]!r}", fix="take it out")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(f"the prompt is not valid Unicode: {text[:80]!r}", fix="take the lone surrogate out")
