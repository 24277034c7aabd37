"""Write a Stable Diffusion pipeline as one file in the original layout, and read such a file back with diffusers."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

CONFIG_KEY = "diffusers_config"
CONFIG_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
)
UNET_NAMES = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
RESNET_NAMES = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "time_emb_proj.": "emb_layers.1.",
    "conv_shortcut.": "skip_connection.",
}
VAE_ATTENTION_NAMES = {"group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out."}


def _rename_start(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def unet_name(name: str, layers_per_block: int, attention_blocks: set[int]) -> str:
    """Return a UNet parameter's name in the original layout; `attention_blocks` are the up blocks with attention."""
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if match is None:
        match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
        if match is None:
            return _rename_start(name, UNET_NAMES)
        kind, index, rest = match[1], int(match[2]), match[3]
        if kind == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * index}.{_rename_start(rest, RESNET_NAMES)}"
    side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    stride = layers_per_block + 1
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{stride * (block + 1)}.0.{rest.replace('conv.', 'op.')}"
        place = f"input_blocks.{stride * block + index + 1}"
    elif kind == "upsamplers":
        return f"output_blocks.{stride * (block + 1) - 1}.{2 if block in attention_blocks else 1}.{rest}"
    else:
        place = f"output_blocks.{stride * block + index}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_rename_start(rest, RESNET_NAMES)}"


def vae_name(name: str, blocks: int) -> str:
    """Return an autoencoder parameter's name in the original layout."""
    match = re.fullmatch(r"(encoder|decoder)\.(.+)", name)
    if match is None:
        return name
    side, rest = match[1], match[2]
    rest = rest.replace("conv_norm_out.", "norm_out.").replace("conv_shortcut.", "nin_shortcut.")
    rest = re.sub(r"mid_block\.resnets\.(\d)\.", lambda match: f"mid.block_{int(match[1]) + 1}.", rest)
    if rest.startswith("mid_block.attentions.0."):
        rest = "mid.attn_1." + _rename_start(rest.removeprefix("mid_block.attentions.0."), VAE_ATTENTION_NAMES)
    rest = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", rest)
    rest = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", rest)
    rest = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda match: f"up.{blocks - 1 - int(match[1])}.block.", rest)
    rest = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda match: f"up.{blocks - 1 - int(match[1])}.upsample.", rest
    )
    return f"{side}.{rest}"


def original_tensors(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """Collect the pipeline's weights under the names and in the shapes of the original layout."""
    config = pipeline.unet.config
    attention_blocks = {index for index, kind in enumerate(config.up_block_types) if "Attn" in kind}
    tensors = {}
    for name, tensor in pipeline.unet.state_dict().items():
        tensors["model.diffusion_model." + unet_name(name, config.layers_per_block, attention_blocks)] = tensor
    for name, tensor in pipeline.vae.state_dict().items():
        is_convolution = ".attentions." in name and tensor.ndim == 2
        original = vae_name(name, len(pipeline.vae.config.block_out_channels))
        tensors["first_stage_model." + original] = tensor[:, :, None, None] if is_convolution else tensor
    for name, tensor in pipeline.text_encoder.state_dict().items():
        tensors["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = tensor
    return tensors


def export(pipeline: StableDiffusionPipeline, tokenizer: Path, path: Path) -> None:
    """Write the pipeline with 16-bit weights and make sure that diffusers reads exactly the same weights back.

    The tokenizer's files are those of the given folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        shutil.copytree(tokenizer, f"{folder}/tokenizer", dirs_exist_ok=True)
        config = {name: Path(folder, name).read_text() for name in CONFIG_FILES}
    tensors = {name: tensor.half().contiguous().cpu() for name, tensor in original_tensors(pipeline).items()}
    save_file(tensors, path, metadata={"format": "pt", CONFIG_KEY: json.dumps(config)})
    assert_same_weights(pipeline, load(path))


def load(path: Path) -> StableDiffusionPipeline:
    """Load a file written by `export` with diffusers' own reader for the original layout."""
    with safe_open(path, "pt") as file:
        config: dict[str, str] = json.loads(file.metadata()[CONFIG_KEY])
    with tempfile.TemporaryDirectory() as folder:
        for name, text in config.items():
            target = Path(folder, name)
            target.parent.mkdir(exist_ok=True)
            target.write_text(text)
        pipeline = StableDiffusionPipeline.from_single_file(
            path, config=folder, local_files_only=True, torch_dtype=torch.float32
        )
    return pipeline


def assert_same_weights(expected: StableDiffusionPipeline, actual: StableDiffusionPipeline) -> None:
    """Fail unless two pipelines' weights are equal, bit for bit in 16-bit precision."""
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(expected, part).state_dict(), getattr(actual, part).state_dict()
        assert ours.keys() == theirs.keys(), f"{part}: other parameters"
        for name, tensor in ours.items():
            assert torch.equal(tensor.half().cpu(), theirs[name].half()), f"{part}: {name} differs"
