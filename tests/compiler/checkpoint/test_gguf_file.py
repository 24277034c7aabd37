"""GGUF files have the values that the gguf package decodes, tensor by tensor, or are refused."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from diffc.compiler.checkpoint.gguf_file import read_gguf
from diffc.compiler.errors import LoadError
from diffc.compiler.graph.lazy_weights import LazyWeight, read

VALUES = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)


@pytest.fixture
def gguf() -> Any:
    """Import the optional package."""
    return pytest.importorskip("gguf", reason="the optional package gguf is not installed")


def written(gguf: Any, path: Path, tensors: dict[str, tuple[np.ndarray[Any, Any], Any]], **shapes: list[int]) -> Path:
    """Write a GGUF file of tensors and their types."""
    writer = gguf.GGUFWriter(str(path), "flux")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    for name, shape in shapes.items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("form", ["Q8_0", "Q4_0", "Q5_1", "BF16"])
def test_blocks_are_decoded_when_they_are_read(gguf: Any, tmp_path: Path, form: str) -> None:
    kind = gguf.GGMLQuantizationType[form]
    stored = gguf.quantize(VALUES, kind)
    path = written(gguf, tmp_path / "x.gguf", {"x": (stored, kind), "y": (VALUES, None)}, x=[6, 4, 4, 4])
    tensors = read_gguf(path)
    assert isinstance(tensors["x"], LazyWeight) and tensors["x"].shape == (6, 4, 4, 4)
    assert np.array_equal(read(tensors["x"]).numpy().reshape(6, 64), gguf.dequantize(stored, kind))
    assert torch.equal(tensors["y"], torch.from_numpy(VALUES))


def test_half_precision_is_mapped(gguf: Any, tmp_path: Path) -> None:
    tensors = read_gguf(written(gguf, tmp_path / "x.gguf", {"x": (VALUES.astype(np.float16), None)}))
    assert tensors["x"].dtype == torch.float16 and not isinstance(tensors["x"], LazyWeight)


def test_rejects_a_damaged_file(gguf: Any, tmp_path: Path) -> None:
    path = written(gguf, tmp_path / "x.gguf", {"x": (VALUES, None)})
    content, chance = path.read_bytes(), random.Random(0)
    for length in [4, 5, 8, 24, 60, *(chance.randrange(len(content)) for _ in range(20))]:
        path.write_bytes(content[:length])
        with pytest.raises(LoadError, match=r"x\.gguf is damaged"):
            read_gguf(path)


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(LoadError, match="the gguf package is not installed") as caught:
        read_gguf(tmp_path / "x.gguf")
    assert caught.value.fix == "pip install 'diffc[gguf]'"


@pytest.mark.parametrize("is_gated", [True, False])
def test_the_encoder_of_t5_has_the_names_of_transformers(gguf: Any, tmp_path: Path, is_gated: bool) -> None:
    form = {"feed_forward_proj": "gated-gelu" if is_gated else "relu"}
    sizes = {"vocab_size": 64, "d_model": 32, "d_ff": 37, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    state = transformers.T5EncoderModel(transformers.T5Config(**sizes, **form)).state_dict()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 2)
    state.pop("encoder.embed_tokens.weight")  # the same tensor as shared.weight
    renamed = {names.get_name(name, try_suffixes=(".weight",)): tensor.numpy() for name, tensor in state.items()}
    tensors = read_gguf(written(gguf, tmp_path / "x.gguf", {name: (data, None) for name, data in renamed.items()}))
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in tensors.items())
