"""What lies in a model's folder and is not read is named, once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffc.compiler.checkpoint.load import load
from diffc.compiler.checkpoint.unread_files import unread_files
from diffc.compiler.errors import DiffcWarning, LoadError

LORA = {f"unet.to_q.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
INVERSION = {"emb_params": torch.zeros(1, 768)}


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    save_file(tensors, path)


def test_files_that_no_component_reads_are_named_once(folder: Path) -> None:
    saved(folder / "pytorch_lora_weights.safetensors", LORA)
    saved(folder / "adapter" / "adapter_model.safetensors", LORA)
    saved(folder / "unet" / "style.safetensors", LORA)
    saved(folder / "text_encoder" / "extra.safetensors", {"x": torch.zeros(1)})
    (folder / "learned_embeds.bin").write_bytes(b"x")
    with pytest.warns(DiffcWarning) as caught:
        load(folder)
    named = (
        "tiny: not read: 5 files: adapter/adapter_model.safetensors (a LoRA (diffusers' or PEFT's names)), "
        "learned_embeds.bin, pytorch_lora_weights.safetensors (a LoRA (diffusers' or PEFT's names)), "
        "text_encoder/extra.safetensors, unet/style.safetensors (a LoRA (diffusers' or PEFT's names))"
    )
    assert [str(warning.message) for warning in caught] == [named]


def test_copies_of_what_is_read_are_not_named(tmp_path: Path) -> None:
    for name in (
        *("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"),
        *("unet/diffusion_pytorch_model.bin", "controlnet_1/diffusion_pytorch_model-00001-of-00002.safetensors"),
        *("text_encoder/pytorch_model.bin", "safety_checker/model.safetensors", ".cache/x/y.safetensors"),
        *("unet/model.onnx", "tokenizer/spiece.model", "README.md"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert unread_files(tmp_path, ["unet", "controlnet", "text_encoder"]) == []
    assert unread_files(tmp_path, ["unet", "text_encoder"]) == [
        "controlnet_1/diffusion_pytorch_model-00001-of-00002.safetensors"
    ]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [(LORA, r"x\.safetensors is a LoRA"), (INVERSION, r"x\.safetensors is a textual inversion")],
)
def test_rejects_a_folder_of_something_else_by_its_name(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    saved(tmp_path / "adapter" / "x.safetensors", tensors)
    with pytest.raises(LoadError, match=message):
        load(tmp_path / "adapter")


def test_a_folder_of_unknown_weights_lacks_its_index(tmp_path: Path) -> None:
    saved(tmp_path / "x" / "x.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(LoadError, match="x has no model_index.json\n"):
        load(tmp_path / "x")


def test_rejects_another_file_as_an_ip_adapter(folder: Path, tmp_path: Path) -> None:
    saved(tmp_path / "face.safetensors", LORA)
    with pytest.raises(LoadError, match=r"face\.safetensors is a LoRA .*, not an IP-Adapter"):
        load(folder, ip_adapter=tmp_path / "face.safetensors")
