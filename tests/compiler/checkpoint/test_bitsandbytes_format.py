"""Weights of bitsandbytes have the values that its library computes; `bitsandbytes.safetensors` holds both.

The file was written by bitsandbytes 0.50.2 on a CPU: ``a`` is nf4 with double quantization from float16, ``b`` fp4 from
bfloat16, ``e`` nf4 with a last block that is not full, ``d`` LLM.int8(); ``expected`` is what the library dequantizes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffc.compiler.checkpoint.bitsandbytes_format import STATES, four_bits
from diffc.compiler.checkpoint.quantized_weights import dequantized
from diffc.compiler.errors import LoadError
from diffc.compiler.graph.lazy_weights import read

STORED = load_file(Path(__file__).with_name("bitsandbytes.safetensors"))


@pytest.mark.parametrize("layer", ["a", "b", "e"])
def test_four_bits_are_the_values_of_the_library(layer: str) -> None:
    weight = read(dequantized(_of(layer), "x")[f"{layer}.weight"])
    assert weight.dtype == torch.float32
    assert torch.equal(weight, STORED[f"{layer}.expected"].float())


def test_eight_bits_are_the_values_of_the_library() -> None:
    weight = read(dequantized(_of("d"), "x")["d.weight"])
    torch.testing.assert_close(weight, STORED["d.expected"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.int8])
def test_the_packed_bytes_may_be_stored_as_any_type(storage: torch.dtype) -> None:
    stored = _of("a")
    stored["a.weight"] = stored["a.weight"].view(-1).view(storage)
    assert torch.equal(read(dequantized(stored, "x")["a.weight"]), STORED["a.expected"].float())


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("absmax", lambda absmax: absmax[:-1]),
        ("quant_map", lambda table: table[:15]),
        ("nested_quant_map", lambda table: table[:15]),
        ("nested_absmax", lambda absmax: absmax.repeat(2)),
        (
            STATES[0],
            lambda _: _packed({"shape": [6, 51], "blocksize": 64, "dtype": "float16", "nested_blocksize": 256}),
        ),
        (STATES[0], lambda _: _packed({"shape": [6, 50], "blocksize": 0, "dtype": "float16"})),
        (STATES[0], lambda _: _packed({"shape": [6, 50], "blocksize": 64, "dtype": "int8"})),
        (STATES[0], lambda _: torch.tensor([255], dtype=torch.uint8)),
    ],
)
def test_rejects_parts_that_do_not_belong_together(part: str, change: object) -> None:
    prefix = "a.weight."
    parts = {name.removeprefix(prefix): t for name, t in STORED.items() if name.startswith(prefix)}
    parts[part] = change(parts[part])  # type: ignore[operator]
    with pytest.raises(LoadError, match=r"a\.weight is no weight of bitsandbytes in four bits"):
        four_bits("a.weight", STORED["a.weight"], parts, "x")


def test_rejects_a_weight_without_its_state() -> None:
    stored = _of("a")
    del stored[f"a.weight.{STATES[0]}"]
    with pytest.raises(LoadError, match="no weight of bitsandbytes"):
        dequantized(stored, "x")


def _of(layer: str) -> dict[str, torch.Tensor]:
    return {name: t for name, t in STORED.items() if name.startswith(f"{layer}.") and not name.endswith("expected")}


def _packed(state: dict[str, object]) -> torch.Tensor:
    return torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8)
