"""A component from a file of its own is that of a folder with the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffc.compiler.checkpoint.load import load
from diffc.compiler.errors import LoadError

Tensors = dict[str, torch.Tensor]
UNET = "diffusion_pytorch_model.safetensors"


def without_weights(folder: Path, component: str) -> None:
    """Leave a component's configuration alone in its folder."""
    for path in (folder / component).glob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_denoiser_is_read_in_both_layouts(
    folder: Path, tmp_path: Path, original_weights: Tensors, layout: str
) -> None:
    tensors = load_file(folder / "unet" / UNET)
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    if layout == "original":
        tensors = {name: t for name, t in original_weights.items() if name.startswith("model.diffusion_model.")}
    save_file(tensors, tmp_path / "x.safetensors")
    without_weights(folder, "unet")
    state = load(folder, component_files={"unet": tmp_path / "x.safetensors"}).unet.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_a_text_encoder_is_read_and_strays_are_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "stray": torch.zeros(2)}, tmp_path / "clip.safetensors")
    expected = load(folder).text_encoder.state_dict()
    without_weights(folder, "text_encoder")
    with pytest.warns(UserWarning, match=r"no component uses 1 tensor: text_encoder\.stray"):
        state = load(folder, component_files={"text_encoder": tmp_path / "clip.safetensors"}).text_encoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_a_gguf_file_is_read(folder: Path, tmp_path: Path, original_weights: Tensors) -> None:
    gguf = pytest.importorskip("gguf", reason="the optional package gguf is not installed")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer, values = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "sd1"), dict[str, torch.Tensor]()
    for name, tensor in original_weights.items():
        if name.startswith("model.diffusion_model."):
            data = np.ascontiguousarray(tensor.float().numpy())
            if data.ndim == 2 and data.shape[1] % 32 == 0:
                data = gguf.quantize(data, kind)
                writer.add_tensor(name, data, raw_dtype=kind)
                values[name] = torch.from_numpy(gguf.dequantize(data, kind))
            else:
                writer.add_tensor(name, data)
                values[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(values, tmp_path / "x.safetensors")
    states = [
        load(folder, component_files={"unet": tmp_path / name}).unet.state_dict()
        for name in ("x.gguf", "x.safetensors")
    ]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_what_the_file_says_of_its_sampling_is_followed(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "unet" / UNET)
    save_file({**tensors, "v_pred": torch.zeros(0)}, tmp_path / "x.safetensors")
    scheduler = load(folder, component_files={"unet": tmp_path / "x.safetensors"}).scheduler
    assert scheduler.config.prediction_type == "v_prediction"


def test_rejects_what_does_not_fit(folder: Path, single_file: Path, tmp_path: Path) -> None:
    llama = {"token_embd.weight": torch.zeros(2, 2), "blk.0.attn_q.weight": torch.zeros(2, 2)}
    save_file(llama, tmp_path / "llama.safetensors")
    lora = {f"unet.to_q.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    save_file(lora, tmp_path / "lora.safetensors")
    shutil.copy(folder / "vae" / UNET, tmp_path / "vae.safetensors")
    for files, message in (
        ({"transformer": tmp_path / "lora.safetensors"}, "the pipeline has no component 'transformer'"),
        ({"unet": tmp_path / "lora.safetensors"}, r"lora\.safetensors is a LoRA .*, not a component"),
        ({"text_encoder": tmp_path / "llama.safetensors"}, r"is a language model with llama\.cpp's names, not a comp"),
        ({"unet": tmp_path / "gone.gguf"}, r"gone\.gguf cannot be read"),
        ({"text_encoder": tmp_path / "vae.safetensors"}, "text_encoder lacks"),
        ({"unet": tmp_path / "vae.safetensors"}, "unet"),
    ):
        with pytest.raises(LoadError, match=message):
            load(folder, component_files=files)
    with pytest.raises(LoadError, match="components are replaced in a diffusers folder only"):
        load(single_file, component_files={"unet": tmp_path / "vae.safetensors"})
