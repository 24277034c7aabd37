"""Check a loaded tokenizer: transformers loads one without its vocabulary, or one that fails at its first rare word."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffc.compiler.errors import LoadError, first_line

PROBES = ("", "a red circle", "A  Cat, &amp; 12's\n", "naïve 猫 🦊 ﷽", "".join(map(chr, range(1, 256))))
"""Texts that use each byte, other scripts, and the unknown token of a vocabulary."""

LENGTH = 64
"""Tokens to which a probe is cut or padded."""

FIX = "restore the tokenizer's files as they were saved"


def refuse_pieces(folders: Iterable[Path], where: str) -> None:
    """Raise `LoadError` for a tokenizer whose only vocabulary is SentencePiece's, where that package is missing."""
    if importlib.util.find_spec("sentencepiece") is not None:
        return
    for folder in folders:
        pieces = sorted(folder.glob("*.model"))
        if pieces and not (folder / "tokenizer.json").exists():
            what = f"{folder.name} has its vocabulary in {pieces[0].name}, and the package sentencepiece is missing"
            raise LoadError(what, where=where, fix="pip install sentencepiece, or add the tokenizer.json of the model")


def check_tokenizer(name: str, tokenizer: Any, folder: Path, where: str) -> None:
    """Raise `LoadError` for a tokenizer without a vocabulary, and for one that cannot encode or pad a text."""
    files = dict(tokenizer.vocab_files_names)
    single = files.pop("tokenizer_file", "tokenizer.json")
    absent = [file for file in sorted(files.values()) if not (folder / name / file).exists()]
    if absent and not (folder / name / single).exists():
        what = f"{name} has no vocabulary: neither {single} nor {', '.join(absent)}"
        raise LoadError(what, where=where, fix=FIX)
    padding = {} if tokenizer.pad_token is None else {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    try:
        for text in PROBES:
            tokenizer(text, **padding)
    except Exception as error:  # the tokenizers library raises no class of its own
        what = f"{name} cannot encode a text: {first_line(error)}"
        raise LoadError(what, where=str(folder / name), fix=FIX) from error
