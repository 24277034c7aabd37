"""Read a GGUF file, whose block formats the ``gguf`` package decodes; each tensor is decoded when it is read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffc.compiler.errors import LoadError, first_line
from diffc.compiler.graph.lazy_weights import encoded

PLAIN = ("F32", "F16", "F64", "I8", "I16", "I32", "I64")
T5_NAMES = (
    (r"token_embd\.", r"shared."),
    (r"enc\.output_norm\.", r"encoder.final_layer_norm."),
    (r"enc\.blk\.(\d+)\.attn_([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"enc\.blk\.(\d+)\.attn_rel_b\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"enc\.blk\.(\d+)\.attn_norm\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"enc\.blk\.(\d+)\.ffn_norm\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"enc\.blk\.(\d+)\.ffn_gate\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"enc\.blk\.(\d+)\.ffn_up\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"enc\.blk\.(\d+)\.ffn_down\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
"""The names of llama.cpp for the encoder of T5, whose values it stores as they are, and those of transformers."""

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""The key of a tensor's shape where its rows were reshaped to fit the blocks."""


def read_gguf(path: Path) -> dict[str, torch.Tensor]:
    """Map the tensors of a GGUF file into memory; those in blocks become lazy weights in float32.

    The encoder of T5 has the names of transformers, whichever the file has.

    Raises `LoadError` for a damaged file, for a format that the package does not decode, and without the package.
    """
    try:
        gguf: Any = importlib.import_module("gguf")
    except ImportError as error:
        what = f"{path.name} is a GGUF file, and the gguf package is not installed"
        raise LoadError(what, where=str(path), fix="pip install 'diffc[gguf]'") from error
    try:
        reader = gguf.GGUFReader(path, mode="c")  # private pages that may be written: PyTorch warns of others
        return _renamed({tensor.name: _tensor(gguf, tensor, reader.fields, path) for tensor in reader.tensors})
    except (ValueError, LookupError, TypeError, OSError, OverflowError, MemoryError) as error:
        what = f"{path.name} is damaged: {first_line(error)}"
        raise LoadError(
            what, where=str(path), fix="get the file again; its digest should be the publisher's"
        ) from error


def _renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a T5 encoder under transformers' names, and others as they are."""
    if not all(name.startswith(("enc.", "token_embd.")) for name in tensors):
        return tensors
    is_gated = any(".ffn_gate." in name for name in tensors)
    renamed = dict[str, torch.Tensor]()
    for name, tensor in tensors.items():
        new = next((re.sub(old, new, name) for old, new in T5_NAMES if re.match(old, name)), name)
        renamed[new if is_gated else new.replace(".wi_1.", ".wi.")] = tensor
    return renamed


def _tensor(gguf: Any, tensor: Any, fields: Any, path: Path) -> torch.Tensor:
    shape = [int(length) for length in reversed(tensor.shape.tolist())]
    if original := fields.get(ORIGINAL_SHAPE + tensor.name):
        shape = [int(length) for length in original.contents()]
    if tensor.tensor_type.name in PLAIN:
        return torch.from_numpy(tensor.data).view(shape)
    data = torch.from_numpy(tensor.data)
    try:
        gguf.dequantize(np.zeros_like(tensor.data[:1]), tensor.tensor_type)
    except NotImplementedError as error:
        what = f"{tensor.name} is stored as {tensor.tensor_type.name}, which gguf {_version()} does not decode"
        raise LoadError(
            what, where=str(path), fix="get a file of another block format, such as Q8_0 or Q4_K"
        ) from error
    if tensor.n_elements != torch.Size(shape).numel():
        raise ValueError(f"{tensor.name} has {tensor.n_elements} values for shape {shape}")

    def decode(stored: torch.Tensor) -> torch.Tensor:
        values: np.ndarray[Any, Any] = gguf.dequantize(stored.numpy(), tensor.tensor_type)
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).view(shape)

    return encoded([data], decode, shape)


def _version() -> str:
    return importlib.metadata.version("gguf")
