"""Verify bundles against the pipelines that they were built from."""

from __future__ import annotations

import html
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from diffc.compiler import capture, write_bundle
from diffc.compiler.commands.compare import VERIFICATION_PROMPTS, _reference, _refusing
from diffc.compiler.errors import BuildError
from diffc.runtime.errors import DiffcWarning
from diffc.runtime.program.facts import Facts
from tests.command_line import diffc, refused, succeeded
from tests.conftest import PROMPT, UNET
from tests.tolerances import VERIFIED_PSNR


def test_verify_measures_fidelity_and_fails_below_the_floor(bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"\n  {PROMPT}\n\n")
    common = ("verify", bundle, "--against", UNET, "--prompts", prompts)
    found = succeeded(*common, "--min-psnr", str(VERIFIED_PSNR))
    assert found["psnr"] >= VERIFIED_PSNR
    assert [image["prompt"] for image in found["images"]] == [PROMPT], "blank lines are no prompts"
    assert {"text_encoder", "unet", "vae_decode"} <= found["components"].keys()
    assert found["not_compared"] == {} and found["warnings"] == []
    assert diffc(*common, "--min-psnr", "190").exit_code == 1


def test_what_no_pipeline_made_cannot_be_verified(tmp_path: Path) -> None:
    write_bundle([capture(lambda: torch.randn(1, 3, 4, 4), {})], tmp_path / "own.diffc")
    said = refused("verify", tmp_path / "own.diffc", "--against", UNET)
    assert "main was not built from a pipeline" in said


def test_verify_notices_another_checkpoint(bundle: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(UNET, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    name = next(key for key in tensors if key.endswith("input_blocks.0.0.weight"))
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, tmp_path / "other.safetensors", metadata)
    found = succeeded("verify", bundle, "--against", tmp_path / "other.safetensors")
    assert found["psnr"] < VERIFIED_PSNR
    assert found["components"]["unet"]["sqnr"] < found["components"]["text_encoder"]["sqnr"]
    [warning] = found["warnings"]
    assert "other.safetensors is not the shapes-unet.safetensors that the bundle was built from" in warning


def test_a_source_that_cannot_be_compared_is_refused_by_name(bundle: Path, tiny_model: Path) -> None:
    printed = refused("verify", bundle, "--against", tiny_model)
    assert "model is not the shapes-unet.safetensors that the bundle was built from" in printed
    assert f"the bundle samples [1, 64, 64, 3], the pipeline of {tiny_model} [1, 16, 16, 3]" in printed
    with pytest.raises(BuildError, match="the pipeline of x cannot sample what the bundle does: no."), _refusing("x"):
        raise TypeError("no such argument")


class Samples:
    """Return a tensor as it is, and refuse an image."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __call__(self, image: list[Any], **options: Any) -> tuple[Any]:
        if isinstance(image[0], PIL.Image.Image):
            raise self.error("no such image")
        return (image[0].movedim(1, -1).numpy(),)


def reference(error: type[Exception]) -> Any:
    recipe = {"inputs": {"image": "image"}, "options": {}, "strength": None, "batch": 1}
    arrays = {"image": np.full((1, 3, 8, 8), 0.5, np.float32)}
    return _reference(Samples(error), {}, recipe, Facts("image-to-image", 1), None, 0, arrays)


def test_a_single_prompt_is_no_list() -> None:
    class Measures:
        def __call__(self, prompt: Any, **options: Any) -> tuple[Any]:
            return (np.array(len(prompt)),)

    facts, recipe = Facts("text-to-image", 1), {"inputs": {}, "options": {}, "strength": None}
    lengths = [_reference(Measures(), {"prompt": "red"}, recipe | {"batch": n}, facts, None, 0, {}) for n in (1, 2)]
    assert lengths == [len("red"), 2]


def test_a_comparison_by_tensors_names_the_error_that_images_raise() -> None:
    with pytest.warns(DiffcWarning, match=r"refuses images \(no such image\): .* tensors"):
        assert reference(ValueError).shape == (1, 8, 8, 3)


def test_a_fault_that_is_no_refusal_of_images_ends_the_comparison() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        reference(torch.OutOfMemoryError)


def test_default_prompts_show_what_a_pipeline_does_to_them() -> None:
    lengths = {len(prompt.split()) for prompt in VERIFICATION_PROMPTS}
    assert 0 in lengths
    assert max(lengths) > 512, "one is too long for every text encoder"
    changes = (
        str.lower,
        str.strip,
        html.unescape,
        lambda text: re.sub(r"\s+", " ", text),
        lambda text: unicodedata.normalize("NFC", text),
        lambda text: text.encode("latin-1", "ignore").decode("latin-1"),
    )
    [changed] = (prompt for prompt, negative in VERIFICATION_PROMPTS.items() if negative is not None)
    assert all(change(changed) != changed for change in changes)
    negative = VERIFICATION_PROMPTS[changed] or ""
    assert all(change(negative) != negative for change in changes[:4])
