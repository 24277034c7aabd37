"""Assemble tiny pipelines with random weights, as folders and as single files in the original layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from original_layout import original_tensors
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffc.compiler.checkpoint.safetensors_header import CONFIG_KEY, config_of_folder

Copy = Callable[[], Path]
Tensors = dict[str, torch.Tensor]


def tiny_tokenizer() -> CLIPTokenizer:
    """Make a tokenizer that knows single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], model_max_length=8)


def tiny_pipeline() -> StableDiffusionPipeline:
    """Make a Stable Diffusion pipeline of 0.4 million random weights."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
    )
    schedule = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, schedule, None, None, requires_safety_checker=False
    )


@pytest.fixture(scope="session")
def saved_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the tiny pipeline as a folder; tests read it, and copy it before they change it."""
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def original_weights() -> Tensors:
    """Give the tiny pipeline's weights in the original layout."""
    return {name: tensor.clone().contiguous() for name, tensor in original_tensors(tiny_pipeline()).items()}


@pytest.fixture(scope="session")
def config_metadata(saved_pipeline: Path) -> dict[str, str]:
    """Give the tiny pipeline's configuration as a single file's metadata."""
    files = {name: content.decode() for name, content in config_of_folder(saved_pipeline).items()}
    return {"format": "pt", CONFIG_KEY: json.dumps(files)}


@pytest.fixture
def folder(saved_pipeline: Path, tmp_path: Path) -> Path:
    """Copy the tiny pipeline's folder, to be damaged."""
    return Path(shutil.copytree(saved_pipeline, tmp_path / "tiny"))


@pytest.fixture
def single_file(original_weights: Tensors, config_metadata: dict[str, str], tmp_path: Path) -> Path:
    """Write the tiny pipeline as one file that brings its configuration, to be damaged."""
    path = tmp_path / "tiny.safetensors"
    save_file(original_weights, path, metadata=config_metadata)
    return path
