"""What a bundle records of its build is read back for the pipeline that it came from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from diffc.compiler.bundle.provenance import (
    arguments_of,
    check_component_files,
    differing_sources,
    facts_of,
    provenance_of,
    weights_digest,
)
from diffc.compiler.errors import BuildError
from diffc.runtime.program.facts import Facts

RECIPE = {"strength": None, "options": {"num_frames": 16}}


def test_arguments_are_those_of_the_trace() -> None:
    facts = Facts("inpaint", 4, (64, 32), "unguided")
    assert arguments_of(facts, RECIPE | {"strength": 0.5}) == {
        "num_inference_steps": 4,
        "width": 64,
        "height": 32,
        "strength": 0.5,
        "num_frames": 16,
    }
    assert arguments_of(Facts("inpaint", 4), RECIPE) == {"num_inference_steps": 4, "num_frames": 16}


def test_a_program_without_facts_is_refused() -> None:
    facts = Facts("inpaint", 4)
    assert facts_of({"a": facts}, "a") is facts
    with pytest.raises(BuildError, match="main was not built from a pipeline") as refused:
        facts_of({"a": facts}, "main")
    assert "build it again" in str(refused.value.fix)


def test_files_beside_the_checkpoint_are_recorded_and_decide_the_digest_of_the_weights(tmp_path: Path) -> None:
    for name in ("model", "one", "two"):
        (tmp_path / name).write_text(name)
    source, one, two = (tmp_path / name for name in ("model", "one", "two"))
    plain = provenance_of(source, {})
    assert plain["source_sha256"] == hashlib.sha256(b"model").hexdigest() == weights_digest(plain)
    first, second = provenance_of(source, {}, {"unet": one}), provenance_of(source, {}, {"unet": two})
    assert first["file_sha256"] == {"unet": hashlib.sha256(b"one").hexdigest()}
    assert "file_sha256" not in plain and first["source_sha256"] == plain["source_sha256"]
    assert len({weights_digest(provenance) for provenance in (plain, first, second)}) == 3
    assert weights_digest(provenance_of(None, {})) == "", "nothing to store calibrations under"


def test_a_component_file_of_the_build_that_is_not_named_is_refused() -> None:
    recipe = {"component_files": {"unet": "unet.gguf"}}
    check_component_files({}, {}, "x.diffc")
    check_component_files(recipe, {"unet"}, "x.diffc")
    with pytest.raises(BuildError, match=r"the bundle was built with unet from unet\.gguf") as refused:
        check_component_files(recipe, {"vae"}, "x.diffc")
    assert refused.value.fix == "name the file: --component unet=FILE"


def test_a_source_is_known_by_its_digest_wherever_it_lies(tmp_path: Path) -> None:
    for folder, text in (("model", "a"), ("moved", "a"), ("other", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "unet").write_text(text)
    model, moved, other = (tmp_path / name for name in ("model", "moved", "other"))
    provenance = provenance_of(model, {}, {"vae": model / "unet"})
    assert list(differing_sources(provenance, moved, {"vae": moved / "unet"})) == []
    source, vae, unet = differing_sources(provenance, other, {"vae": other / "unet", "unet": model / "unet"})
    assert source == f"{other} is not the model that the bundle was built from: its digest is another"
    assert vae == f"{other / 'unet'} is not the file of vae that the bundle was built from: its digest is another"
    assert unet == f"the bundle was built without a file of its own for unet, which {model / 'unet'} is now"
