"""Read constant tensors from a safetensors file that may be hostile.

Specification: https://huggingface.co/docs/safetensors (an 8-byte little-endian header size, a JSON header, the data).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffc.runtime.bundle.manifest import parse_json, typed
from diffc.runtime.errors import BundleError

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
HEADER, RANK = 2**26, 8


def read_tables(data: bytes) -> Mapping[str, NDArray[Any]]:
    """Map names to read-only tensors that share the memory of ``data``; BF16 is widened to float32.

    Raises `BundleError` for a header that is no header and for tensors that overlap, leave gaps or leave the file.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(HEADER, len(data) - 8):
        raise _broken("its header is cut off")
    header = typed(parse_json(data[8 : 8 + size], "tables.safetensors"), dict, "tables.safetensors")
    header.pop("__metadata__", None)
    content = memoryview(data)[8 + size :]
    tables, end = dict[str, NDArray[Any]](), 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1])):
        start, stop = _offsets(entry)
        if start != end or not start <= stop <= len(content):
            raise _broken(f"the bytes of {name} are not where they should be")
        tables[name], end = _tensor(name, entry, content[start:stop]), stop
    if end != len(content):
        raise _broken(f"{len(content) - end} bytes belong to no tensor")
    return tables


def _offsets(entry: Any) -> tuple[int, int]:
    start, stop = _integers(entry, "data_offsets", 2)
    return start, stop


def _integers(entry: Any, key: str, most: int) -> list[int]:
    sizes = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(sizes, list) or len(sizes) > most or not all(type(n) is int and 0 <= n < 2**48 for n in sizes):
        raise _broken(f"{key} is {str(sizes)[:80]}")
    if key == "data_offsets" and len(sizes) != most:
        raise _broken(f"{key} is {str(sizes)[:80]}")
    return sizes


def _tensor(name: str, entry: dict[str, Any], content: memoryview) -> NDArray[Any]:
    kind, shape = str(entry.get("dtype")), _integers(entry, "shape", RANK)
    stored = np.dtype("<u2" if kind == "BF16" else DTYPES.get(kind, "V")).newbyteorder("<")
    if stored.kind == "V":
        raise _broken(f"{name} has the type {kind[:80]}")
    if math.prod(shape) * stored.itemsize != len(content):
        raise _broken(f"{name} has {len(content)} bytes, not those of {kind}{shape}")
    flat = np.frombuffer(content, stored)
    if kind == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(shape)


def _broken(what: str) -> BundleError:
    return BundleError(f"tables.safetensors: {what}", fix="build the bundle again")
