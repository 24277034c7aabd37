"""Compute the values of weights that another tool quantized, tensor by tensor when they are read.

A stored tensor of eight bits or fewer may mean something only together with others: its companions. The tables below
name them by the ends of their names, and the schemes that are not computed. What neither knows is refused, because
a weight without its scale is a wrong image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from diffc.compiler.checkpoint import bitsandbytes_format
from diffc.compiler.checkpoint.load_errors import listed
from diffc.compiler.errors import LoadError, first_line
from diffc.compiler.graph.lazy_weights import Weight, encoded, lazy_weight

Tensors = Mapping[str, torch.Tensor]

COMPANIONS = (
    (r"(?P<owner>.+)\._data", "data"),  # quanto
    (r"(?P<owner>.+)\._scale", "scale"),
    (r"(?P<module>.+)\.scale_weight", "scale"),  # ComfyUI, in files with a tensor named scaled_fp8
    (r"(?P<module>.+)\.comfy_quant", "format"),
    (r"(?P<module>.+)\.(scale_input|input_scale|output_scale|input_scale_ub)", "activation"),
    (r"(?P<module>.+)\.SCB", "row maximum"),  # bitsandbytes, LLM.int8()
    (r"(?P<module>.+)\.weight_format", "layout"),
    *((rf"(?P<owner>.+)\.{re.escape(part)}", part) for part in bitsandbytes_format.PARTS),
    (r"(?P<owner>.+)_zero_point", "zero point"),
    (r"(?P<owner>.+)_scale(_inv)?", "scale"),  # ModelOpt, compressed-tensors, DeepSeek's blocks
)
"""What a tensor is to a weight, by its name: ``owner`` is that weight, or ``module`` the one whose weight it is."""

REFUSED = (
    ("SVDQuant (nunchaku)", r"\.qweight", r"\.(wscales|wcscales|smooth(_factor)?|proj_down|lora_down)"),
    ("GPTQ or AWQ", r"\.qweight", r"\.(qzeros|scales|g_idx)"),
    ("packed compressed-tensors", r"\.weight_packed", r"\.weight_(scale|shape)"),
    ("NVFP4", r"\.weight", r"\.weight_scale_2"),
    ("quanto with fewer than eight bits", r"\._data", r"\._shift"),
    ("torchao", r"[:_]qdata", r"[:_](scale|zero_point)"),
)
"""Schemes that are not computed: their names, and two ends of names that both occur in their files."""

METHODS = ("", "bitsandbytes", "fp8", "fbgemm_fp8", "quanto", "compressed-tensors")
"""The values of ``quant_method`` in a configuration that say no more than the tables."""

FORMATS = ("float8_e4m3fn", "float8_e5m2")
"""The formats of ComfyUI in which a weight is a value times a scale."""

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)
COMPANION_TABLES = tuple((re.compile(pattern), role) for pattern, role in COMPANIONS)
BLOCK = 128
"""The usual side of the square blocks that share a scale."""

COMFY_METADATA = "_quantization_metadata"
MARKER = "scaled_fp8"
FIX = "get the model in 16 or 32 bits, or quantized as docs/checkpoints.md lists"


def dequantized(
    stored: Tensors, where: str, config: Mapping[str, Any] | None = None, metadata: Mapping[str, str] | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors of a file or folder, with quantized weights as lazy ones in float32 and without companions.

    ``config`` is the component's ``quantization_config``, ``metadata`` that of the file. Integers become lazy too:
    loading refuses them where the model has floating-point weights. Raises `LoadError` for a scheme that is not
    computed, and for a weight that lacks a part.
    """
    _refuse_schemes(stored, config or {}, where)
    _refuse_formats(stored, metadata or {}, where)
    groups = _companions(stored)
    weights = {
        owner: _lazy(owner, stored, roles, where, (config or {}).get("weight_block_size"))
        for owner, roles in groups.items()
    }
    apart = {name for roles in groups.values() for name in roles.values()}
    apart |= {name for name in stored if name.rpartition(".")[2] == MARKER}
    _refuse_unscaled(stored, weights, is_scaled=bool(apart), where=where)
    rest = {name: tensor for name, tensor in stored.items() if name not in apart and name not in weights}
    return {name: _named(name, tensor, where) for name, tensor in rest.items()} | weights


def refuse_leftovers(unused: Iterable[str], stored: Tensors, where: str) -> None:
    """Raise `LoadError` where no component uses a tensor that names a used weight of float8: it may be its scale.

    A copy of the weight, of the same shape, is none.
    """
    names = set(unused)
    narrow = {_words(n.removesuffix(".weight")): n for n, t in stored.items() if t.dtype in FLOAT8 and n not in names}
    for name in sorted(names) if narrow else ():
        words = _words(name)
        slices = (words[at:end] for at in range(len(words)) for end in range(at + 1, len(words) + 1))
        weight = next((narrow[part] for part in slices if part in narrow), None)
        if weight is not None and (name not in stored or stored[name].shape != stored[weight].shape):
            raise _refusal(f"{name} may give {weight} its scale, in a scheme that diffc does not read", where)


def _words(name: str) -> tuple[str, ...]:
    return tuple(re.split(r"[._]", name))


def _refuse_schemes(stored: Tensors, config: Mapping[str, Any], where: str) -> None:
    for scheme, first, second in REFUSED:
        ends = [next((name for name in stored if re.search(f"{end}$", name)), None) for end in (first, second)]
        if None not in ends:
            raise _refusal(f"the weights are quantized by {scheme}: {ends[0]}, {ends[1]}", where)
    method = str(config.get("quant_method", ""))
    narrow = next((name for name, tensor in stored.items() if tensor.itemsize == 1), None)
    if method not in METHODS and narrow is not None:
        raise _refusal(f"the weights are quantized by {method}, as {narrow} is", where)
    strange = next((name for name, tensor in stored.items() if tensor.dtype not in FLOATS + FLOAT8 + INTEGERS), None)
    if strange is not None:
        raise _refusal(f"{strange} is stored as {_type(stored[strange])}", where)


def _refuse_formats(stored: Tensors, metadata: Mapping[str, str], where: str) -> None:
    """Raise `LoadError` for a format of ComfyUI that is not a value times a scale."""
    texts = {name: bytes(t.tolist()) for name, t in stored.items() if name.endswith(".comfy_quant")}
    try:
        formats = {name: json.loads(text)["format"] for name, text in texts.items()}
        layers = json.loads(metadata.get(COMFY_METADATA, "{}")).get("layers", {})
        formats |= {name: layer["format"] for name, layer in layers.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _refusal(
            f"what the file says of its quantized layers cannot be read: {first_line(error)}", where
        ) from error
    for name, layer_format in formats.items():
        if layer_format not in FORMATS:
            raise _refusal(f"{name.removesuffix('.comfy_quant')} is quantized as {layer_format}", where)


def _companions(stored: Tensors) -> dict[str, dict[str, str]]:
    """Find the tensors that belong to quantized weights: their names, by the weight and by their role."""
    groups: dict[str, dict[str, str]] = {}
    for name in stored:
        for pattern, role in COMPANION_TABLES:
            match = pattern.fullmatch(name)
            fields = match.groupdict() if match else {}
            owner = fields.get("owner") or f"{fields.get('module')}.weight"
            if match and (owner in stored or f"{owner}._data" in stored):
                groups.setdefault(owner, {})[role if role not in groups.get(owner, {}) else f"second {role}"] = name
                break
    meanings = {"activation", "format", "layout"}
    return {
        owner: roles
        for owner, roles in groups.items()
        if {*roles} - meanings or stored[owner].dtype in FLOAT8 or stored[owner].dtype in INTEGERS
    }


def _lazy(owner: str, stored: Tensors, roles: Mapping[str, str], where: str, block: Any) -> torch.Tensor:
    """Make the lazy weight of a quantized tensor and its companions."""
    data = stored[roles.get("data", owner)]
    parts = {role: stored[name] for role, name in roles.items()}
    if second := next((name for role, name in roles.items() if role.startswith("second ")), None):
        raise _refusal(f"{owner} has two companions of one meaning, {second} being the second", where)
    if not parts.keys().isdisjoint(bitsandbytes_format.PARTS):
        return bitsandbytes_format.four_bits(owner, data, parts, where)
    if "row maximum" in parts:
        return _int8_rows(owner, data, parts, where)
    if "scale" not in parts:
        raise _refusal(f"{owner} is stored as {_type(data)} and has no scale beside {', '.join(roles.values())}", where)
    if data.dtype in FLOATS:
        if not bool((parts["scale"] == 1).all()):
            raise _refusal(f"{owner} has a scale, {roles['scale']}, and is not quantized ({_type(data)})", where)
        return data
    return _scaled(owner, data, parts, where, block)


def _int8_rows(owner: str, data: torch.Tensor, parts: Tensors, where: str) -> torch.Tensor:
    maxima, layout = parts["row maximum"], parts.get("layout", torch.zeros(()))
    if data.dtype != torch.int8 or data.dim() != 2 or maxima.numel() != len(data) or bool(layout.any()):
        what = f"{owner} is {_type(data)} of shape {list(data.shape)} with {maxima.numel()} row maxima: no LLM.int8()"
        raise _refusal(what, where)
    return encoded([data, maxima], bitsandbytes_format.eight_bits, data.shape)


def _scaled(owner: str, data: torch.Tensor, parts: Tensors, where: str, block: Any) -> torch.Tensor:
    """Make a lazy weight of quantized values, scales and perhaps zero points: ``scale * (q - zero_point)``."""
    scale, zero = parts["scale"], parts.get("zero point")
    if data.dtype == torch.uint8 and zero is None:
        raise _refusal(f"{owner} is stored as uint8 with a scale and without a zero point", where)
    if scale.dtype not in FLOATS or (data.dtype not in FLOAT8 and data.dtype not in (torch.int8, torch.uint8)):
        raise _refusal(f"{owner} is stored as {_type(data)} with a scale of {_type(scale)}", where)
    sizes = _block_sizes(owner, data.shape, scale, where, block)
    if zero is not None and zero.shape != scale.shape:
        raise _refusal(f"{owner} has scales {list(scale.shape)} and zero points {list(zero.shape)}", where)

    def decode(data: torch.Tensor, scale: torch.Tensor, *zero: torch.Tensor) -> torch.Tensor:
        values = data.float()
        for point in zero:
            values -= _repeated(point, sizes, data.shape)
        return values.mul_(_repeated(scale, sizes, data.shape))

    return encoded([data, scale, *([] if zero is None else [zero])], decode, data.shape)


def _block_sizes(owner: str, shape: torch.Size, scale: torch.Tensor, where: str, block: Any) -> list[int]:
    """Compute how many elements along each axis share a scale; ``block`` is the size of one in the configuration."""
    if scale.numel() == 1:
        return list(shape)
    counts = [len(scale), *[1] * (len(shape) - 1)] if scale.dim() == 1 else list(scale.shape)
    configured = block if isinstance(block, list) and len(block) == len(shape) else [None] * len(shape)
    fits = len(counts) == len(shape)
    sizes = [_block_size(*axis) for axis in zip(shape, counts, configured, strict=True)] if fits else [0]
    if 0 in sizes or (scale.dim() == 1 and sizes[0] != 1):
        what = f"the scales of {owner}, {list(scale.shape)}, do not say which of its elements {list(shape)} share one"
        raise _refusal(what, where)
    return sizes


def _block_size(length: int, count: int, configured: int | None) -> int:
    """Return the elements of a block along one axis, or 0 where several numbers, or none, are possible."""
    if count in (1, length):
        return length // count
    usual = {size for size in (configured or BLOCK,) if -(-length // size) == count}
    exact = set() if configured or length % count else {length // count}
    return next(iter(usual | exact)) if len(usual | exact) == 1 else 0


def _repeated(scale: torch.Tensor, sizes: Iterable[int], shape: torch.Size) -> torch.Tensor:
    """Repeat scales for the elements of their blocks."""
    scale = scale.float()
    if scale.numel() == 1:
        return scale.view(())
    scale = scale.view(-1, *[1] * (len(shape) - 1)) if scale.dim() == 1 else scale
    for axis, (size, length) in enumerate(zip(sizes, shape, strict=True)):
        if size > 1 and scale.shape[axis] > 1:
            scale = scale.repeat_interleave(size, axis).narrow(axis, 0, length)
    return scale


def _refuse_unscaled(stored: Tensors, weights: Tensors, *, is_scaled: bool, where: str) -> None:
    """Raise `LoadError` where a matrix of float8 has no scale in a file of which others have one."""
    bare = [name for name, t in stored.items() if t.dtype in FLOAT8 and t.dim() > 1 and name not in weights]
    if is_scaled and bare:
        raise _refusal(f"float8 weights have scales, but not {listed(bare)}", where)


def _named(name: str, tensor: torch.Tensor, where: str) -> torch.Tensor:
    return tensor if tensor.is_floating_point() else lazy_weight(Weight(tensor, tensor.dtype, name, where))


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _refusal(what: str, where: str) -> LoadError:
    return LoadError(what, where=where, fix=FIX)
