"""Define low-bit number formats, and how the values of a tensor share scales.

A tensor is stored as values of a number format: ``x = scale * (quantized - zero)``. Integer and floating-point formats
differ in their values and in nothing else. A `Spec` states which values share a scale, and when an activation's scale
is known; it reads and prints as text:

    int8:channel             one scale for each output channel
    int4:group=64            one for each 64 weights of an output channel
    uint8:tensor             one scale and a zero point for all, from calibration
    int8:tensor:step         one scale for each step of the sampler
    int8:token               one for each row of the activation, computed when it runs
    int8:group=32:dynamic    one for each 32 values of a row, computed when it runs
    nvfp4                    e2m1:group=16:scale=e4m3, for activations with ``:dynamic``
    mxfp4                    e2m1:group=32:scale=e8m0

Specifications: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, table 1, https://arxiv.org/abs/2209.05433;
OCP Microscaling Formats (MX) 1.0, sections 5.3 and 6; ONNX's float4e2m1 and float8.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace

import torch

from diffc.compiler.errors import RecipeError


@dataclass(frozen=True)
class Format:
    """Describe a number format: integers, or floating-point values with some bits of mantissa."""

    name: str
    bits: int
    lowest: float
    highest: float
    storage: torch.dtype
    mantissa: int | None = None
    smallest_exponent: int = 0

    @property
    def is_integer(self) -> bool:
        """Return whether the values are integers."""
        return self.mantissa is None

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """Round to the nearest values of the format, ties to even; saturate at its ends."""
        return (x / (spacing := self.spacing(x))).round().mul(spacing).clamp(self.lowest, self.highest)

    def spacing(self, x: torch.Tensor) -> torch.Tensor:
        """Return the distance between neighbouring values of the format at each element of ``x``."""
        if self.mantissa is None:
            return torch.ones((), dtype=x.dtype)
        exponent = torch.frexp(x).exponent.sub(1).clamp(min=self.smallest_exponent)
        return torch.ldexp(torch.ones_like(x), exponent - self.mantissa)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Store values of the format: integers in bytes, e2m1 as its four bits in a byte, e8m0 as its exponent."""
        if self.name == "e2m1":
            magnitude = torch.bucketize(values.abs(), E2M1)
            return (magnitude + 8 * torch.signbit(values)).to(torch.uint8)
        if self.name == "e8m0":
            return values.log2().round().add(127).to(torch.uint8)
        return values.to(self.storage)

    def decode(self, stored: torch.Tensor) -> torch.Tensor:
        """Return stored values as float32: the inverse of `encode`."""
        if self.name == "e2m1":
            return torch.cat([E2M1, -E2M1])[stored.int()]
        if self.name == "e8m0":
            return torch.ldexp(torch.ones(stored.shape), stored.int() - 127)
        return stored.float()


E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""The magnitudes of a four-bit float, by its three low bits."""


def _integers() -> list[Format]:
    bits = range(2, 9)
    signed = [Format(f"int{n}", n, -(2.0 ** (n - 1)), 2.0 ** (n - 1) - 1, torch.int8) for n in bits]
    return signed + [Format(f"uint{n}", n, 0.0, 2.0**n - 1, torch.uint8) for n in bits]


FORMATS = {
    form.name: form
    for form in (
        *_integers(),
        Format("e4m3", 8, -448.0, 448.0, torch.float8_e4m3fn, 3, -6),
        Format("e5m2", 8, -57344.0, 57344.0, torch.float8_e5m2, 2, -14),
        Format("e2m1", 4, -6.0, 6.0, torch.uint8, 1, 0),
        Format("e8m0", 8, 2.0**-127, 2.0**127, torch.uint8, 0, -127),
    )
}

BLOCK_FORMATS = {"nvfp4": "e2m1:group=16:scale=e4m3", "mxfp4": "e2m1:group=32:scale=e8m0"}
"""Names of whole specs."""

DIVISIONS = ("tensor", "channel", "token", "group")
TIMES = ("static", "step", "dynamic")
SCALES = ("float32", "float16", "e4m3", "e8m0", "uint4")
"""How scales of weights are stored; uint4 is a multiple of the channel's float16, so that products stay integers."""


@dataclass(frozen=True)
class Spec:
    """Describe how a tensor is quantized: its format, and which values share a scale, known when and stored how."""

    format: Format
    per: str = "tensor"
    group: int = 0
    when: str = "static"
    scale: str = "float32"

    @property
    def is_affine(self) -> bool:
        """Return whether there are zero points: for formats without a sign."""
        return self.format.is_integer and self.format.lowest == 0

    @property
    def bits(self) -> float:
        """Count the bits per value, including its share of a group's scale."""
        shared = {"float32": 32, "float16": 16, "e4m3": 8, "e8m0": 8, "uint4": 4}[self.scale]
        return self.format.bits + (shared / self.group if self.group else 0.0)

    def widened(self, per: str) -> Spec:
        """Return a spec of eight bits in place of fewer, with one scale for each of ``per`` in place of groups."""
        if self.format.bits >= 8:
            return self
        name = "uint8" if self.is_affine else "int8" if self.format.is_integer else "e4m3"
        per = per if self.per == "group" else self.per
        shared = "float16" if self.scale == "uint4" else "float32"
        return Spec(FORMATS[name], per, when="dynamic" if per == "token" else self.when, scale=shared)

    def __str__(self) -> str:
        per = f"group={self.group}" if self.per == "group" else self.per
        implied = "dynamic" if self.per == "token" else "static"
        when = f":{self.when}" if self.when != implied else ""
        return f"{self.format.name}:{per}{when}" + (f":scale={self.scale}" if self.scale != "float32" else "")


@dataclass(frozen=True)
class Scheme:
    """Hold the specs of a layer; a tensor without one stays in float.

    ``output`` is the output of an integer convolution. Of attention, ``activation`` is for queries and keys, which its
    first product reads; the second reads ``probabilities``, the softmax in [0, 1], and ``values``.
    """

    weight: Spec | None = None
    activation: Spec | None = None
    output: Spec | None = None
    probabilities: Spec | None = None
    values: Spec | None = None

    def __str__(self) -> str:
        specs = {name: getattr(self, name) for name in (field.name for field in fields(self))}
        return ", ".join(f"{name} {spec}" for name, spec in specs.items() if spec is not None) or "float"

    def of_input(self, at: int) -> Spec | None:
        """Return the spec of one of a layer's inputs: the third of attention are its values."""
        return self.values if at == 2 else self.activation


def parse_spec(text: str) -> Spec | None:
    """Read a spec; ``float`` is None. Raises `RecipeError` that names an unknown word and the nearest known one."""
    if text == "float":
        return None
    first, *words = text.split(":")
    name, *more = BLOCK_FORMATS.get(first, first).split(":")
    words = [*more, *words]
    if name not in FORMATS or name == "e8m0":
        raise _unknown(name, text, [*(n for n in FORMATS if n != "e8m0"), *BLOCK_FORMATS, "float"])
    spec = Spec(FORMATS[name])
    for word in words:
        key, _, value = word.partition("=")
        if key in DIVISIONS and (key == "group") == value.isdecimal() and value != "0":
            spec = replace(spec, per=key, group=int(value or 0), when="dynamic" if key == "token" else spec.when)
        elif word in TIMES:
            spec = replace(spec, when=word)
        elif key == "scale" and value in SCALES:
            spec = replace(spec, scale=value)
        else:
            raise _unknown(word, text, [*DIVISIONS[:3], "group=64", *TIMES, *(f"scale={s}" for s in SCALES)])
    if spec.scale in FORMATS and not spec.group:
        raise RecipeError(f"scale={spec.scale} is for groups", where=text, fix="add group=64, or leave it out")
    if spec.is_affine and spec.when != "static":
        fix = f"use {spec.format.name.removeprefix('u')}, which has a sign"
        raise RecipeError(
            f"{spec.format.name} needs zero points, which are known at build or not at all", where=text, fix=fix
        )
    return spec


def _unknown(word: str, text: str, words: list[str]) -> RecipeError:
    guess = "".join(f"did you mean {close}? " for close in difflib.get_close_matches(word, words, n=1))
    return RecipeError(f"{word!r} is no word of a spec", where=text, fix=f"{guess}known: {', '.join(words)}")


def spread(scale: torch.Tensor, shape: torch.Size | tuple[int, ...], group: int) -> torch.Tensor:
    """Broadcast scales [1], [rows] or, with groups along all but the first axis, [rows, groups] to a tensor's shape."""
    if group:
        rows = shape[0]
        return scale.repeat_interleave(group, dim=1)[:, : torch.Size(shape[1:]).numel()].reshape(rows, *shape[1:])
    return scale.reshape(-1, *[1] * (len(shape) - 1))
