"""Read tables that the safetensors library wrote, and refuse headers that lie."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from diffc.runtime import BundleError
from diffc.runtime.bundle.safetensors import read_tables

TYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_reads_what_the_library_wrote(dtype: torch.dtype) -> None:
    tensors = {"a": torch.arange(6).reshape(2, 3).to(dtype), "empty": torch.zeros(0, 4, dtype=dtype)}
    tables = read_tables(save(tensors | {"scalar": torch.tensor(1, dtype=dtype)}, {"note": "text"}))
    for name, tensor in tensors.items():
        assert tables[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(tables[name], tensor.numpy())
    assert tables["scalar"].shape == () and not tables["a"].flags.writeable


def test_widens_bfloat16() -> None:
    tensor = torch.tensor([1.0, -0.1, 3e38], dtype=torch.bfloat16)
    table = read_tables(save({"a": tensor}))["a"]
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, tensor.float().numpy())


def file(header: Any, content: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its header is cut off"),
        (b"\xff" * 16, "its header is cut off"),
        (file(b"{"), "no JSON"),
        (file(entry(data_offsets=[0, 9])), "not where they should be"),
        (file(entry(data_offsets=[4, 8])), "not where they should be"),
        (file(entry(data_offsets=[0])), "data_offsets is"),
        (file(entry(data_offsets=[0, -8])), "data_offsets is"),
        (file(entry(data_offsets=[0, True])), "data_offsets is"),
        (file(entry(shape=[3])), "a has 8 bytes, not those of"),
        (file(entry(shape=[1] * 9)), "shape is"),
        (file(entry(dtype="F8_E4M3")), "a has the type F8_E4M3"),
        (file(entry() | {"b": entry()["a"]}), "not where they should be"),
        (file(entry(), b"\0" * 12), "4 bytes belong to no tensor"),
    ],
)
def test_refuses_a_header_that_lies(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_tables(data)
