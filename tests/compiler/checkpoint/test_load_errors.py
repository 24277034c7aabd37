"""Faults of tensors, as users read them."""

from __future__ import annotations

from pathlib import Path

from diffc.compiler.checkpoint.load_errors import listed, misfit, missing_tensors, wrong_shape
from tests.checkpoints import edit_json, refusal


def test_long_lists_end_with_a_count() -> None:
    assert listed(["b"]) == "1 tensor: b"
    assert listed(["b", "a"]) == "2 tensors: a, b"
    assert listed("gfedcba") == "7 tensors: a, b, c, d, e, … (2 more)"


def test_names_the_component_the_tensor_and_the_file() -> None:
    error = missing_tensors("vae", ["conv.weight"], "x.safetensors")
    assert str(error).startswith("vae lacks 1 tensor: conv.weight\n  at:  x.safetensors\n  fix: ")
    assert str(wrong_shape("vae.w", [1, 2], [3], "x")).startswith("vae.w has shape [1, 2], its configuration has [3]\n")


def test_finds_the_shapes_in_the_error_of_diffusers() -> None:
    text = "Cannot load x because conv.weight expected shape torch.Size([4, 3]), but got torch.Size([4, 9]). If you"
    assert (
        misfit("unet", "f", ValueError(text)).what == "unet.conv.weight has shape [4, 9], its configuration has [4, 3]"
    )
    assert misfit("unet", "f", KeyError("sigma\nmore")).what.startswith("unet cannot be loaded: 'sigma")


def test_a_configuration_whose_value_has_another_type_is_refused(folder: Path) -> None:
    edit_json(folder / "text_encoder" / "config.json", hidden_act=[1, 2])
    assert "text_encoder cannot be loaded" in refusal(folder)


def test_a_long_value_of_a_configuration_is_cut_in_the_message(folder: Path) -> None:
    edit_json(folder / "text_encoder" / "config.json", eos_token_id="x" * 1_000_000)
    message = refusal(folder)
    assert "text_encoder cannot be loaded" in message and len(message) < 1000


def test_a_configuration_that_divides_by_zero_is_refused(folder: Path) -> None:
    edit_json(folder / "unet" / "config.json", norm_num_groups=0)
    assert "unet cannot be loaded: integer modulo by zero" in refusal(folder)
