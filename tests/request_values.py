"""Name the values that a request brings to a program: its tokens and its noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffc.compiler.ir.program import Program


def request_values(
    program: Program, noises: Sequence[torch.Tensor] = (), **tokens: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Map the results of ``noise``, in their order, and of ``tokenize``, by the text that it reads, to tensors."""
    values, rest = dict[str, torch.Tensor](), iter(noises)
    for op in program.ops:
        if op.operator == "noise":
            values[op.results[0].name] = next(rest)
        elif op.operator == "tokenize":
            (text,) = op.reads()
            values |= {value.name: tensor for value, tensor in zip(op.results, tokens[text], strict=False)}
    return values
