"""Turn texts into token ids as transformers does with ``padding="max_length", truncation=True``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from diffc.runtime.errors import BundleError, DiffcError, DiffcWarning, RequestError
from diffc.runtime.program.program import Length, Op


class Tokenizer:
    """Hold one tokenizer of a bundle. Raises `BundleError` for a file that the tokenizers library cannot read."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        with _blamed(f"tokenizer {name} cannot be read"):
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(
        self,
        texts: Sequence[str],
        *,
        length: int,
        pad: int,
        template: str = "{}",
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Encode texts as ids and attention mask, both int64[len(texts), length], padded on one side with ``pad``.

        A text that is too long is cut with a `DiffcWarning`. Raises `RequestError` for a text that cannot be encoded.
        """
        for text in texts:
            check_text(text)
        with _blamed(f"tokenizer {self.name} failed"):
            rows = [self._encode(template.replace("{}", text), length, truncation_side) for text in texts]
        ids = np.full((len(rows), length), pad, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for at, row in enumerate(rows):
            columns = slice(len(row)) if padding_side == "right" else slice(length - len(row), length)
            ids[at, columns], mask[at, columns] = row, 1
        return ids, mask

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text, without special tokens around it, by their names in the vocabulary."""
        check_text(text)
        with _blamed(f"tokenizer {self.name} failed"):
            return list(self._tokenizer.encode(text, add_special_tokens=False).tokens)

    def _encode(self, text: str, length: int, truncation_side: str) -> list[int]:
        special = self._tokenizer.num_special_tokens_to_add(False)
        if special > length:
            raise BundleError(f"{special} special tokens do not fit {length} tokens", fix="build the bundle again")
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        space = length - special
        if len(encoding) > space:
            is_end, last = truncation_side == "right", len(encoding) - space - 1
            cut = text[encoding.offsets[space][0] :] if is_end else text[: encoding.offsets[last][1]]
            end = "end" if is_end else "start"
            warning = f"the prompt is longer than {length} tokens; cut off at its {end}: {cut!r}"
            warnings.warn(warning, DiffcWarning, stacklevel=2)
            encoding.truncate(space, direction=truncation_side)
        return list(self._tokenizer.post_process(encoding, None, True).ids)


def tokenize(
    op: Op, tokenizers: Mapping[str, Tokenizer], texts: Sequence[str], lengths: Sequence[Length]
) -> dict[str, NDArray[Any]]:
    """Compute the results of a ``tokenize``, and the length that it counts, by their names.

    Where the results have an open size, rows are padded to the longest text. Raises `RequestError` where that is out of
    the length's bounds.
    """
    options: dict[str, Any] = dict(op.attrs)
    encode, count = tokenizers[options.pop("tokenizer")], options.pop("count", None)
    ids_and_mask = encode(texts, **options)
    longest = int(ids_and_mask[1].sum(axis=1).max(initial=0))
    for length in (length for length in lengths if length.name == count and not length.least <= longest <= length.most):
        what = f"a text of {longest} tokens, and this program takes {length.least} to {length.most}"
        raise RequestError(
            what, where=op.where, fix="use a longer text" if longest < length.least else "use a shorter one"
        )
    first = options["length"] - longest if options.get("padding_side") == "left" else 0
    values: dict[str, NDArray[Any]] = {} if count is None else {count: np.array(longest)}
    for result, array in zip(op.results, ids_and_mask, strict=False):
        columns = slice(first, first + longest) if result.type.lengths else slice(None)
        values[result.name] = array[:, columns].astype(result.type.dtype, copy=False)
    return values


@contextmanager
def _blamed(what: str) -> Iterator[None]:
    # The library raises Exception itself, and a panic of its Rust is no Exception, nor can its class be imported.
    try:
        yield
    except (DiffcError, DiffcWarning):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise BundleError(f"{what}: {str(error)[:200]}", fix="build the bundle again") from error
        raise


def check_text(text: object) -> None:
    """Raise `RequestError` for a value that is no text, or no text that can be encoded."""
    if not isinstance(text, str):
        raise RequestError(f"the prompt is a {type(text).__name__}", fix="pass a text, or a list of texts")
    if "\0" in text:
        raise RequestError(f"the prompt holds a NUL byte: {text[:80]!r}", fix="take it out")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(f"the prompt is not valid Unicode: {text[:80]!r}", fix="take the lone surrogate out")
