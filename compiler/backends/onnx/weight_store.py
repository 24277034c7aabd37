"""Store the weights of a bundle, in one file for each component that all of its graphs share."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffc.compiler.errors import BackendError
from diffc.compiler.graph.lazy_weights import Weight

ALIGNMENT = 64


@dataclass(frozen=True)
class Place:
    """Describe where in a bundle a tensor lies, in bytes, and its type there."""

    file: str
    offset: int
    length: int
    dtype: torch.dtype


class WeightStore:
    """Keep tensors in one file for each component; equal tensors are stored once, and each is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_memory: dict[Hashable, Place] = {}
        self.by_content: dict[tuple[str, str], Place] = {}
        self.read: list[Weight] = []  # alive, so that their memory stays theirs
        (folder / "weights").mkdir()

    def put(self, component: str, weight: Weight, dtype: torch.dtype) -> Place:
        """Store a tensor, as another type where no value becomes infinite by that, and return its place.

        Raises `BackendError` where one does in the type that the graph computes with.
        """
        key = (component, dtype, *weight.key)
        if key not in self.by_memory:
            self.read.append(weight)
            place = self._append(component, weight, dtype) or self._append(component, weight, weight.dtype)
            if place is None:
                name = str(weight.dtype).removeprefix("torch.")
                what = f"{weight.name or 'a weight'} has values that are infinite in {name}"
                raise BackendError(what, where=f"component {component}", fix="choose a target of bf16 or fp32")
            self.by_memory[key] = place
        return self.by_memory[key]

    def _append(self, component: str, weight: Weight, dtype: torch.dtype) -> Place | None:
        """Write a tensor behind the others, and take it back where it overflows or has been there before."""
        location, digest = f"weights/{component}.bin", hashlib.sha256()
        with (self.folder / location).open("ab") as file:
            end = file.tell()
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            file.write(b"\0" * (offset - end))
            for piece in weight.slices(dtype):
                if dtype != weight.source.dtype and piece.isinf().any():
                    file.truncate(end)
                    return None
                data = piece.view(torch.uint8).numpy().data
                digest.update(data)
                file.write(data)
            place = Place(location, offset, file.tell() - offset, dtype)
            known = self.by_content.setdefault((component, digest.hexdigest()), place)
            if known is not place:
                file.truncate(end)
        return replace(known, dtype=dtype)
