"""Files that are something else are named, with the option that takes them; whole models are not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from diffc.compiler.checkpoint.file_kinds import _table, kind_by_start, kind_by_tensors

TENSORS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "kohya": (("lora_unet_down_blocks_0_proj_in.lora_down.weight", "lora_te1_x.alpha"), "LoRA (kohya", "fuse_lora"),
    "peft": (("base_model.model.to_q.lora_A.weight", "base_model.model.to_q.lora_B.weight"), "LoRA (diff", "fuse_lora"),
    "diffusers": (("unet.up_blocks.0.attn1.to_q.lora.up.weight",), "LoRA (diffusers' or PEFT's", "fuse_lora"),
    "xlabs": (("double_blocks.0.processor.qkv_lora1.down.weight",), "LoRA (XLabs", "fuse_lora"),
    "loha": (("lora_unet_x.hada_w1_a", "lora_unet_x.hada_w1_b", "lora_unet_x.alpha"), "LoRA of another form", "fuse"),
    "controlnet": (
        ("control_model.zero_convs.0.0.weight", "control_model.input_blocks.0.0.weight"),
        "ControlNet",
        "fold",
    ),
    "controlnet of diffusers": (
        ("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
        "ControlNet",
        "StableDiffusionControlNetPipeline",
    ),
    "control-lora": (("lora_controlnet", "input_blocks.0.0.weight"), "ControlNet as a LoRA", "no option"),
    "t2i": (("conv_in.weight", "body.0.block1.weight", "body.0.block2.weight"), "T2I-Adapter", "no option"),
    "t2i of diffusers": (("adapter.conv_in.weight", "adapter.body.0.resnets.0.block1.weight"), "T2I-Adapter", "no opt"),
    "ip": (("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "an IP-Adapter", "--ip-adapter"),
    "esrgan": (("conv_first.weight", "body.0.rdb1.conv1.weight"), "an upscaler", "no option"),
    "old esrgan": (("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"), "an upscaler", "no option"),
    "compact": (("body.0.weight", "body.1.weight", "body.66.bias"), "an upscaler", "no option"),
    "swinir": (("conv_first.weight", "layers.0.residual_group.blocks.0.norm1.weight"), "an upscaler", "no option"),
    "hypernetwork": (("768.0.linear.0.weight", "768.1.linear.0.weight"), "a hypernetwork", "no option"),
    "motion": (
        ("down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight",),
        "a motion module",
        "AnimateDiffPipeline",
    ),
    "taesd": (("1.weight", "3.conv.0.weight", "3.skip.weight"), "a TAESD", "--component"),
    "taesd of diffusers": (("encoder.layers.0.weight", "decoder.layers.3.conv.0.weight"), "a TAESD", "--component"),
    "vae": (
        ("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.bias"),
        "an autoencoder (VAE)",
        "--component",
    ),
    "t5": (
        ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.final_layer_norm.weight"),
        "a text encoder (T5)",
        "--component",
    ),
    "llama.cpp": (("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight"), "llama.cpp", "encoders of T5"),
    "clip": (
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "text_projection.weight"),
        "a CLIP",
        "--component",
    ),
    "open_clip": (("transformer.resblocks.0.attn.in_proj_weight", "positional_embedding"), "a CLIP", "--component"),
    "llm": (
        ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"),
        "a language model",
        "--component",
    ),
    "nunchaku": (("transformer_blocks.0.qweight", "transformer_blocks.0.wscales"), "SVDQuant", "in 16 bits"),
    "flux": (
        ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"),
        "a Flux transformer",
        "--component",
    ),
    "flux of ComfyUI": (
        ("model.diffusion_model.double_blocks.0.img_mod.lin.weight", "model.diffusion_model.single_blocks.0.norm"),
        "a Flux transformer alone",
        "--component",
    ),
    "sd3": (
        ("joint_blocks.0.context_block.attn.qkv.weight", "x_embedder.proj.weight"),
        "an SD3 trans",
        "--component",
    ),
    "unet": (("model.diffusion_model.input_blocks.0.0.weight",), "a UNet alone", "--component"),
    "unet of diffusers": (("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"), "a UNet alone", "--component"),
    "wan": (("blocks.0.self_attn.q.weight", "patch_embedding.weight"), "a transformer alone", "--component"),
    "transformer": (
        ("transformer_blocks.0.attn.to_q.weight", "proj_out.weight"),
        "a transformer alone",
        "--component",
    ),
}


@pytest.mark.parametrize(("names", "kind", "fix"), TENSORS.values(), ids=TENSORS)
def test_names_a_file_by_its_tensors(names: tuple[str, ...], kind: str, fix: str) -> None:
    found = kind_by_tensors({name: (320, 320) for name in names})
    assert found is not None and kind in found.name and fix in found.fix


@pytest.mark.parametrize(
    ("shapes", "is_embedding"),
    [
        ({"emb_params": (2, 768)}, True),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, True),
        ({"<cat>": (768,)}, True),
        ({"emb_params": (2, 77)}, False),
        ({"a": (2, 768), "b": (2, 768), "c": (2, 768), "d": (2, 768)}, False),
    ],
)
def test_names_a_textual_inversion_by_its_shapes(shapes: dict[str, tuple[int, ...]], is_embedding: bool) -> None:
    kind = kind_by_tensors(shapes)
    assert (kind is not None and "textual inversion" in kind.name) == is_embedding


@pytest.mark.parametrize(
    "names",
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "vae.decoder.conv_in.weight"),
        ("model.diffusion_model.x.weight", "first_stage_model.y", "lora_unet_x.lora_down.weight"),
        ("model.diffusion_model.joint_blocks.0.x", "text_encoders.t5xxl.transformer.shared.weight", "vae.x"),
    ],
)
def test_a_whole_model_is_nothing_else(names: tuple[str, ...]) -> None:
    assert kind_by_tensors({name: (320, 320) for name in names}) is None


def test_the_tiny_pipeline_is_a_whole_model(original_weights: dict[str, torch.Tensor]) -> None:
    assert kind_by_tensors({name: tuple(tensor.shape) for name, tensor in original_weights.items()}) is None


STARTS = {
    "zipped pickle": (b"PK\x03\x04\x00archive/data.pkl", "a pickle in a zip"),
    "zip": (b"PK\x03\x04\x00model.safetensors", "a zip archive"),
    "pickle": (b"\x80\x04\x95", "a pickle"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "html": (b"\n<!doctype html>", "a web page"),
    "html with a mark": (b"\xef\xbb\xbf<html>", "a web page"),
    "xml": (b'<?xml version="1.0"?><net>', "an XML file"),
    "hub": (b"Entry not found", "a message of the hub"),
    "hub, JSON": (b'{"error":"Repository not found"}', "a message of the hub"),
    "onnx": (b"\x08\x08\x12\x07pytorch", "an ONNX graph"),
    "engine": (b"ftrt\x00\x00", "a TensorRT engine"),
    "gzip": (b"\x1f\x8b\x08", "a compressed archive"),
    "png": (b"\x89PNG\r\n", "an image"),
    "tar": (b"manifest.json".ljust(257, b"\0") + b"ustar\0", "a tar archive"),
    "text": ("caf\u00e9 \u8d64\n".encode(), "a text file"),
    "json": (b'{\n "_class_name": "x"}', "a text file"),
}


@pytest.mark.parametrize(("start", "kind"), STARTS.values(), ids=STARTS)
def test_names_a_file_by_its_first_bytes(start: bytes, kind: str) -> None:
    found = kind_by_start(Path("x.safetensors"), start)
    assert found is not None and found.name.startswith(kind)


def test_a_header_s_length_may_be_any_byte() -> None:
    for first in range(256):
        assert kind_by_start(Path("x.safetensors"), bytes([first, 2]) + bytes(6) + b'{"a":') is None


@pytest.mark.parametrize(("name", "kind"), [("x.onnx", "an ONNX graph"), ("x.PLAN", "a TensorRT engine")])
def test_a_name_tells_where_the_bytes_do_not(name: str, kind: str) -> None:
    found = kind_by_start(Path(name), b"anything")
    assert found is not None and found.name == kind


def test_every_row_has_an_example_and_a_use() -> None:
    table = _table()
    assert {row["use"] for kind in ("start", "tensors") for row in table[kind]} == table["use"].keys()
    assert all(re.compile(pattern) for row in table["tensors"] for pattern in row.get("needs", ()))
