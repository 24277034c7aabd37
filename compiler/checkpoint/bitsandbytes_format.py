"""Compute the values of weights that bitsandbytes quantized, from its public format and without its library.

Paper: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023. https://arxiv.org/abs/2305.14314
       Dettmers et al., "LLM.int8()", NeurIPS 2022. https://arxiv.org/abs/2208.07339

Four bits are an index into ``quant_map``, two in a byte, the first in the high half; a block shares its largest
absolute value ``absmax``. With double quantization ``absmax`` is quantized in the same manner in eight bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch

from diffc.compiler.errors import LoadError, first_line
from diffc.compiler.graph.lazy_weights import LazyWeight, encoded

STATES = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *STATES)
"""The ends of the names of the tensors beside a packed one."""


def four_bits(name: str, packed: torch.Tensor, parts: Mapping[str, torch.Tensor], where: str) -> LazyWeight:
    """Make a lazy weight of packed indices and the tensors beside them, which `PARTS` names.

    Raises `LoadError` where one of them is missing or has another size than the rest demand.
    """
    try:
        state = json.loads(bytes(next(parts[key] for key in STATES if key in parts).tolist()))
        shape, size = [int(length) for length in state["shape"]], int(state["blocksize"])
        dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[state["dtype"]]
        tables, maxima = [parts["quant_map"]], [parts["absmax"]]
        counts, sizes, offset = [math.prod(shape)], [size], 0.0
        if "nested_absmax" in parts:
            tables, maxima = [*tables, parts["nested_quant_map"]], [*maxima, parts["nested_absmax"]]
            counts, sizes = [*counts, len(maxima[0])], [size, int(state["nested_blocksize"])]
            offset = float(state["nested_offset"])
        expected = [-(-count // size) for count, size in zip(counts, sizes, strict=True)]
        fits = [len(table) for table in tables] == [16, 256][: len(tables)] and packed.nbytes == -(-counts[0] // 2)
        if not fits or [len(maximum) for maximum in maxima] != expected:
            raise ValueError(f"{packed.nbytes} bytes and {len(maxima[0])} blocks do not make shape {shape}")
    except (StopIteration, LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"{name} is no weight of bitsandbytes in four bits: {first_line(error)}"
        raise LoadError(what, where=where, fix="get the checkpoint again") from error

    def decode(packed: torch.Tensor, *arrays: torch.Tensor) -> torch.Tensor:
        tables, maxima = arrays[: len(sizes)], arrays[len(sizes) :]
        absmax = maxima[0] if len(sizes) == 1 else _blocks(tables[1][maxima[0].int()], maxima[1], sizes[1]) + offset
        packed = packed.contiguous().view(-1).view(torch.uint8)
        indices = torch.stack([packed >> 4, packed & 15], dim=-1).view(-1)[: counts[0]]
        return _blocks(tables[0][indices.int()], absmax, sizes[0]).to(dtype).float().view(shape)

    return encoded([packed, *tables, *maxima], decode, shape)


def eight_bits(values: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
    """Compute the values of LLM.int8(), where each row of bytes has its largest absolute value."""
    return values.float() * maxima.float().view(-1, 1) / 127


def _blocks(values: torch.Tensor, maxima: torch.Tensor, size: int) -> torch.Tensor:
    """Multiply each block of values by its maximum; the last block may be shorter."""
    return values.float() * maxima.float().repeat_interleave(size)[: len(values)]
