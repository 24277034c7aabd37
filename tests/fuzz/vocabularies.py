"""Save pipelines whose tokenizers have the files of old: ``vocab.json`` and ``merges.txt``, or ``spiece.model``."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from tests.compiler.conftest import tiny_pipeline
from tests.zoo import ZOO


def save_merges(folder: Path) -> None:
    """Save Stable Diffusion with the vocabulary of its tokenizer in two files."""
    tiny_pipeline().save_pretrained(folder)
    single = folder / "tokenizer" / "tokenizer.json"
    model = json.loads(single.read_text(encoding="utf-8"))["model"]
    single.unlink()
    lines = ["#version: 0.2", *(" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"])]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")


def save_pieces(folder: Path) -> None:
    """Save a pipeline of T5 with the pieces of its tokenizer in the format of SentencePiece, whose package it needs."""
    sentencepiece = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    ZOO["PixArtAlphaPipeline"]().pipeline.save_pretrained(folder)
    single = folder / "tokenizer" / "tokenizer.json"
    pieces = json.loads(single.read_text(encoding="utf-8"))["model"]["vocab"]
    single.unlink()
    model = sentencepiece.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.unk_id = 1, 2
    model.normalizer_spec.name = "identity"
    for at, (piece, score) in enumerate(pieces):
        kind = {0: 3, 1: 3, 2: 2}.get(at, 1)  # padding and end are control pieces, one is the unknown
        model.pieces.add(piece=piece, score=score, type=kind)
    (folder / "tokenizer" / "spiece.model").write_bytes(model.SerializeToString())
