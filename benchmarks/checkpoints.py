"""Describe models of published sizes, and write checkpoints of them with random weights, or with none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import diffusers as d
import torch
import transformers as t
from accelerate import init_empty_weights
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

SLICE = 1 << 24
SMALL = 1 << 12
SHARD = 10 << 30

Described = tuple[type, dict[str, Any], torch.dtype]
"""The class of a pipeline, its components, and the type of its weights."""

Values = Callable[[BinaryIO, Sequence[tuple[torch.Tensor, torch.dtype]]], None]
"""A function that writes the values of tensors, each as a type."""


def tokenizer() -> t.CLIPTokenizer:
    """Make a byte-level BPE that knows every byte."""
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return t.CLIPTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def clip(**changes: Any) -> t.CLIPTextModel | t.CLIPTextModelWithProjection:
    """Make the text encoder of CLIP ViT-L/14, or another; with a ``projection_dim`` it has its projection."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    special = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    settings = {"vocab_size": 49408, "hidden_act": "quick_gelu", **sizes, **special}
    kind = t.CLIPTextModelWithProjection if "projection_dim" in changes else t.CLIPTextModel
    return kind(t.CLIPTextConfig(**settings | changes))


def autoencoder(**changes: Any) -> d.AutoencoderKL:
    """Make the autoencoder of Stable Diffusion."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    shape = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    return d.AutoencoderKL(**blocks | shape | changes)


def sd15() -> Described:
    """Describe Stable Diffusion 1.5: 1.07 billion weights in float32."""
    unet = d.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = d.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **betas)
    components = {"vae": autoencoder(), "text_encoder": clip(), "tokenizer": tokenizer(), "unet": unet}
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return d.StableDiffusionPipeline, {**components, "scheduler": scheduler, **absent}, torch.float32


def flux(blocks: int = 19, single_blocks: int = 38) -> Described:
    """Describe FLUX.1-dev: 11.9 billion weights in bfloat16. Its second text encoder has one layer here, not 24."""
    transformer = d.FluxTransformer2DModel(num_layers=blocks, num_single_layers=single_blocks, guidance_embeds=True)
    t5 = t.T5Config(
        vocab_size=32128,
        d_model=4096,
        d_ff=10240,
        d_kv=64,
        num_heads=64,
        num_layers=1,
        feed_forward_proj="gated-gelu",
    )
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(c), -5.0) for c in range(97, 123))]
    components = {
        "scheduler": d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": autoencoder(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159),
        "text_encoder": clip(),
        "tokenizer": tokenizer(),
        "text_encoder_2": t.T5EncoderModel(t5),
        "tokenizer_2": t.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512),
        "transformer": transformer,
    }
    return d.FluxPipeline, components, torch.bfloat16


def write(folder: Path, describe: Callable[[], Described], values: Values | None = None) -> None:
    """Write a checkpoint's folder, by default of random weights, of which no more than a slice is ever in memory."""
    with init_empty_weights(include_buffers=False):
        pipeline_class, components, dtype = describe()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, component in components.items():
        if isinstance(component, nn.Module):
            (partial / name).mkdir(parents=True)
            save_config = component.config.save_pretrained if isinstance(component, t.PreTrainedModel) else None
            (save_config or component.save_config)(partial / name)
            file = "model.safetensors" if save_config else SAFETENSORS_WEIGHTS_NAME
            _write_weights(component, dtype, partial / name / file, values or random_values)
        elif hasattr(component, "save_pretrained"):
            component.save_pretrained(partial / name)
    pipeline_class(**components).save_config(partial)
    partial.rename(folder)


def random_values(file: BinaryIO, tensors: Sequence[tuple[torch.Tensor, torch.dtype]]) -> None:
    """Write normal values of deviation 0.02, slices of the same ones; buffers have their own values."""
    numbers = torch.randn(2 * SLICE, generator=torch.Generator().manual_seed(0)) * 0.02
    typed = {kind: numbers.to(kind).view(torch.uint8).numpy().data for _, kind in tensors}
    for place, (tensor, kind) in enumerate(tensors):
        if not tensor.is_meta:
            file.write(tensor.to(kind).reshape(-1).view(torch.uint8).numpy().tobytes())
            continue
        for left in range(tensor.numel(), 0, -SLICE):
            start = (place * 4099 + left) % SLICE * kind.itemsize
            file.write(typed[kind][start : start + min(left, SLICE) * kind.itemsize])


def no_values(file: BinaryIO, tensors: Sequence[tuple[torch.Tensor, torch.dtype]]) -> None:
    """Leave holes, which take no disk and read as zeros, for all but small tensors: those are ones."""
    for tensor, kind in tensors:
        if tensor.numel() <= SMALL:
            file.write(torch.ones(tensor.numel(), dtype=kind).view(torch.uint8).numpy().tobytes())
        else:
            file.seek(tensor.numel() * kind.itemsize, os.SEEK_CUR)
    file.truncate(file.tell())


def _write_weights(module: nn.Module, dtype: torch.dtype, path: Path, values: Values) -> None:
    """Write weights as both libraries do: files of at most `SHARD` bytes, and where they are several an index."""
    tensors = {key: (tensor, dtype if tensor.is_floating_point() else tensor.dtype) for key, tensor in _owned(module)}
    shards, size = [dict[str, tuple[torch.Tensor, torch.dtype]]()], 0
    for key, (tensor, kind) in tensors.items():
        size += tensor.numel() * kind.itemsize
        if shards[-1] and size > SHARD:
            size = tensor.numel() * kind.itemsize
            shards.append({})
        shards[-1][key] = (tensor, kind)
    if len(shards) == 1:
        return _write_file(tensors, path, values)
    names = [f"{path.stem}-{at:05}-of-{len(shards):05}.safetensors" for at in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(shard, path.with_name(name), values)
    files = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return None


def _write_file(tensors: Mapping[str, tuple[torch.Tensor, torch.dtype]], path: Path, values: Values) -> None:
    """Write the safetensors format by hand: a length, a header of JSON, and the values."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, (tensor, kind) in tensors.items():
        start, end = end, end + tensor.numel() * kind.itemsize
        header[key] = {"dtype": names[kind], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        values(file, list(tensors.values()))


def _owned(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor of a module once, tied ones under their first name."""
    seen, tied = set[int](), getattr(module, "all_tied_weights_keys", {})
    for key, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and key not in tied:
            seen.add(id(tensor))
            yield key, tensor
