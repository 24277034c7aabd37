"""Describe the arguments that a traced function takes from the request."""

from __future__ import annotations

from dataclasses import dataclass

from diffc.compiler.ir.program import SCALAR, Input, Type


@dataclass(frozen=True)
class Text:
    """Take a text, for a batch of images."""

    batch: int = 1


@dataclass(frozen=True)
class Number:
    """Take a number, with its default."""

    default: float


@dataclass(frozen=True)
class Image:
    """Take an image, [batch, channels, height, width] in [0, 1]."""

    shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class Tensor:
    """Take an array, [batch, …] in float32."""

    shape: tuple[int, ...]


RequestInput = Text | Number | Image | Tensor


def declared(name: str, item: RequestInput) -> Input:
    """Declare an input in the terms of the IR."""
    match item:
        case Text(batch):
            return Input(name, Type("text", (batch,)))
        case Number(default):
            return Input(name, SCALAR, default)
        case Image(shape) | Tensor(shape):
            return Input(name, Type("float32", shape), is_image=isinstance(item, Image))
