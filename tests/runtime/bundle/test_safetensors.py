"""Read tables that the safetensors library wrote, and refuse headers that lie."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save

from diffc.runtime import BundleError
from diffc.runtime.bundle.safetensors import read_tables
from tests.mutations import EDITS, edited

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


def tables_file(header: object, content: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its header is cut off"),
        (bytes(7), "its header is cut off"),
        (struct.pack("<Q", 2**63) + b"{}", "its header is cut off"),
        (tables_file(b"{"), "is no JSON"),
        (tables_file([]), "is not an object"),
        (tables_file({"a": 5}), "data_offsets is None"),
        (tables_file({"a": entry(offsets=(0,))}), "data_offsets is"),
        (tables_file({"a": entry(offsets=(0, 8, 8))}), "data_offsets is"),
        (tables_file({"a": entry(offsets=(0, 8.0))}), "data_offsets is"),
        (tables_file({"a": entry(offsets=(0, True))}), "data_offsets is"),
        (tables_file({"a": entry(offsets=(-1, 8))}), "data_offsets is"),
        (tables_file({"a": entry(offsets=(8, 0))}), "the bytes of a are not where they should be"),
        (tables_file({"a": entry(offsets=(0, 9))}), "the bytes of a are not where they should be"),
        (tables_file({"a": entry(offsets=(4, 8), shape=(1,))}), "the bytes of a are not where they should be"),
        (tables_file({"a": entry(), "b": entry()}), "the bytes of b are not where they should be"),
        (tables_file({"a": entry(shape=(1,), offsets=(0, 4))}), "4 bytes belong to no tensor"),
        (tables_file({}), "8 bytes belong to no tensor"),
        (tables_file({"a": entry(dtype="C64")}), "a has the type C64"),
        (tables_file({"a": entry(dtype="F8_E4M3")}), "a has the type F8_E4M3"),
        (tables_file({"a": entry(dtype=None)}), "a has the type None"),
        (tables_file({"a": entry(shape=(3,))}), "a has 8 bytes, not those of F32"),
        (tables_file({"a": entry(shape=(-2,))}), "shape is"),
        (tables_file({"a": entry(shape=(2**60,))}), "shape is"),
        (tables_file({"a": entry(shape=(1,) * 8 + (2,))}), "shape is"),
        (tables_file({"a": entry(shape=None)}), "shape is"),
    ],
)
def test_refuses_a_header_that_lies(content: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_tables(content)


@settings(max_examples=200, deadline=None)
@given(EDITS)
def test_mutated_tables_are_read_or_refused(edits: list[tuple[float, int, bytes]]) -> None:
    good = {"a": torch.arange(3, dtype=torch.float32), "b": torch.ones(2, 2, dtype=torch.int64)}
    content = edited(save(good, {"k": "v"}), edits)
    with suppress(BundleError):
        assert sum(table.nbytes for table in read_tables(content).values()) <= 2 * len(content)
