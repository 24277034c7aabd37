"""What single phases refuse, and what they leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffc.compiler import write_bundle
from diffc.compiler.bundle.write import Contents, write_contents
from diffc.compiler.driver import phases as module
from diffc.compiler.driver.options import read_options
from diffc.compiler.driver.phases import normalize
from diffc.compiler.driver.state import State
from diffc.compiler.errors import BuildError
from diffc.compiler.ir.parse import parse
from tests.zoo.components import clip_tokenizer

PROGRAM = parse("program main() { n: float32[2] = noise() return n }")


def test_a_bundle_that_nothing_could_open_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(folder: Path, contents: Contents) -> None:
        write_contents(folder, contents)
        (folder / "tables.safetensors").write_bytes(b"")

    monkeypatch.setattr(module, "write_contents", damaging)
    with pytest.raises(BuildError, match=r"the bundle cannot be opened: tables\.safetensors is truncated") as failed:
        write_bundle([PROGRAM], tmp_path / "x.diffc")
    assert failed.value.inside == "phase check" and list(tmp_path.iterdir()) == []


def test_tokenizers_that_no_program_calls_are_left_out(tmp_path: Path) -> None:
    pad = clip_tokenizer().pad_token_id
    call = f'tokenize(prompt, tokenizer="two", length=4, pad={pad})'
    calling = parse(f"program main(prompt: text[1]) {{ ids: int64[1, 4] = {call} return ids }}")
    components = {"one": clip_tokenizer(), "two": clip_tokenizer(), "vae": object()}
    state = State(read_options("ort-fp32"), tmp_path, components=components, programs=(calling,))
    after = normalize(state)
    assert list(after.tokenizers) == ["two"] == list(after.calibrator.tokenizers)
    assert after.calibrator.tokenizers["two"].decode() == after.tokenizers["two"]


def test_a_calibrator_has_the_prompts_and_the_seed_of_the_options(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    options = read_options("ort-w8a8", calibration=tmp_path / "prompts.txt", seed=7)
    state = State(options, tmp_path, programs=(PROGRAM,), provenance={"source_sha256": "abc"})
    calibrator = normalize(state).calibrator
    assert (calibrator.prompts, calibrator.seed, calibrator.source) == (("a cat",), 7, "abc")
