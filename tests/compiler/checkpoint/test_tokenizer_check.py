"""A tokenizer that its library refuses, at once or at its first rare word, is a refusal of diffc's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from diffc.compiler.checkpoint.load import load
from diffc.compiler.checkpoint.tokenizer_check import check_tokenizer, refuse_pieces
from diffc.compiler.errors import LoadError


def test_rejects_what_the_tokenizers_library_refuses(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    for text in (path.read_text()[:1000], json.dumps(content | {"padding": "x"}), json.dumps({"model": content})):
        path.write_text(text)
        with pytest.raises(LoadError, match="the pipeline cannot be put together") as caught:
            load(folder)
        assert caught.value.where and caught.value.fix


def test_rejects_a_tokenizer_whose_unknown_token_is_unknown(saved_pipeline: Path, tmp_path: Path) -> None:
    source = saved_pipeline / "tokenizer"
    content = json.loads((source / "tokenizer.json").read_text())
    content["model"]["unk_token"] = "<lost>"
    del content["model"]["vocab"]["a"]
    content["model"]["merges"] = []
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((source / "tokenizer_config.json").read_text()) | {"unk_token": None}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    with pytest.raises(LoadError, match="tokenizer cannot encode a text: Unk token"):
        check_tokenizer("tokenizer", tokenizer, tmp_path, "x")


def test_accepts_a_whole_tokenizer(saved_pipeline: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(saved_pipeline / "tokenizer")
    check_tokenizer("tokenizer", tokenizer, saved_pipeline, "x")
    with pytest.raises(LoadError, match="tokenizer has no vocabulary"):
        check_tokenizer("tokenizer", tokenizer, saved_pipeline / "unet", "x")


def test_rejects_a_tokenizer_that_cannot_pad_or_cut(saved_pipeline: Path) -> None:
    for side in ("padding_side", "truncation_side"):
        tokenizer = CLIPTokenizer.from_pretrained(saved_pipeline / "tokenizer")
        setattr(tokenizer, side, "middle")
        with pytest.raises(LoadError, match="tokenizer cannot encode a text: .*middle"):
            check_tokenizer("tokenizer", tokenizer, saved_pipeline, "x")


def test_a_tokenizer_that_pads_with_nothing_is_accepted(saved_pipeline: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(saved_pipeline / "tokenizer")
    tokenizer.pad_token = None
    check_tokenizer("tokenizer", tokenizer, saved_pipeline, "x")


def test_a_vocabulary_of_pieces_needs_its_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = folder / "tokenizer"
    (tokenizer / "spiece.model").write_bytes(b"pieces")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse_pieces([tokenizer], "x")
    (tokenizer / "tokenizer.json").unlink()
    with pytest.raises(
        LoadError, match=r"tokenizer has its vocabulary in spiece\.model, and the package sent"
    ) as refused:
        load(folder)
    assert "pip install sentencepiece" in str(refused.value.fix)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    refuse_pieces([tokenizer], "x")
