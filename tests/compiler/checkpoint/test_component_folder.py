"""Which files of a component's folder are its weights, and that both ways of loading them agree."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file

from diffc.compiler.checkpoint.component_folder import _weight_files, from_tensors
from diffc.compiler.errors import LoadError

UNET, TEXT = diffusers.UNet2DConditionModel, transformers.CLIPTextModel
SHARDS = ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"]
HALF = ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("component", "files", "variant", "weights"),
    [
        (UNET, ["diffusion_pytorch_model.safetensors"], None, ["diffusion_pytorch_model.safetensors"]),
        (UNET, ["diffusion_pytorch_model.fp16.safetensors", "style_lora.safetensors"], "fp16", None),
        (UNET, ["diffusion_pytorch_model.non_ema.safetensors"], "non_ema", None),
        (UNET, ["diffusion_pytorch_model.safetensors", *SHARDS], None, SHARDS),
        (UNET, ["diffusion_pytorch_model-00001-of-00001.fp16.safetensors"], "fp16", None),
        (TEXT, ["model.safetensors", "model.fp16.safetensors"], None, ["model.safetensors"]),
        (TEXT, HALF, "fp16", HALF),
        (TEXT, ["model.safetensors", "model-00001-of-00001.safetensors"], None, ["model.safetensors"]),
    ],
)
def test_weights_are_the_files_that_the_library_would_read(
    tmp_path: Path, component: type, files: list[str], variant: str | None, weights: list[str] | None
) -> None:
    for name in files:
        (tmp_path / name).touch()
    read = variant, [tmp_path / name for name in weights or files[:1]]
    assert _weight_files("unet", component, tmp_path) == read


def test_rejects_a_folder_whose_files_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "style_lora.safetensors").touch()
    with pytest.raises(LoadError, match=r"no weights: style_lora\.safetensors is not diffusion_pytorch_model\.saf"):
        _weight_files("unet", UNET, tmp_path)


@pytest.mark.parametrize(
    ("component", "name", "file"),
    [(UNET, "unet", "diffusion_pytorch_model.safetensors"), (TEXT, "text_encoder", "model.safetensors")],
)
def test_a_module_of_tensors_is_that_of_the_file(
    saved_pipeline: Path, component: type[torch.nn.Module], name: str, file: str
) -> None:
    tensors = load_file(saved_pipeline / name / file)
    first = next(iter(tensors))
    module, report = from_tensors(component, saved_pipeline / name, {**tensors, "stray": torch.zeros(3)})
    assert not report["missing_keys"] and [*report["unexpected_keys"]] == ["stray"]
    expected = component.from_pretrained(saved_pipeline / name).state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(tensor, expected[key]) for key, tensor in module.state_dict().items())
    del tensors[first]
    assert len(from_tensors(component, saved_pipeline / name, tensors)[1]["missing_keys"]) == 1
