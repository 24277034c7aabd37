"""Follow the elements of masks, and of what is computed from masks and sizes alone, beside the operations of a trace.

The mask of a text is a function of its number of tokens. A trace assumes such a number, so it knows these elements:
the operations on them are recorded as all are, and questions about them (``item``, ``nonzero``, an index) are answered.
What an answer leads to may depend on the number, so each question is listed with its line.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from diffc.compiler.tracing.pipeline_errors import pipeline_line


@dataclass(frozen=True, eq=False)
class Known:
    """Hold the result of an operator at the trace's numbers of tokens, and the list of questions about such results."""

    result: Any
    questions: list[str]

    def answer(self) -> Any:
        """Return the result as a constant of the trace, and list the question."""
        self.questions.append(pipeline_line(traceback.extract_stack()))
        return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, self.result)

    def leaves(self) -> list[Known]:
        """Return each tensor of the result by itself."""
        return [Known(leaf, self.questions) for leaf in pytree.tree_leaves(self.result)]


def known_result(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Known | None:
    """Apply an operator to known elements; return None where the elements of an operand are not known."""
    symbolic = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if hasattr(leaf, "known")]
    elements = [operand.known for operand in symbolic]
    questions = next((known.questions for known in elements if known is not None), None)
    if questions is None or None in elements:
        return None

    def known(leaf: Any) -> Any:
        return leaf.known.result if hasattr(leaf, "known") else leaf

    return Known(func(*pytree.tree_map(known, args), **pytree.tree_map(known, kwargs)), questions)


def known_rows(tensor: Any, indices: Sequence[Any], values: Any = None, accumulate: bool = False) -> Any:
    """Return the index of the rows that a known mask, or a constant one, selects: a slice where they are consecutive.

    Returns None where the index is no such mask alone, and where values are written of which no row has its own.
    """
    axis = sum(index is None for index in indices)
    mask = indices[-1]
    known = getattr(mask, "known", Known(mask, []))
    if mask is None or len(indices) != axis + 1 or known is None or mask.dtype != torch.bool:
        return None
    rank = tensor.dim() - mask.dim() + 1
    if accumulate or (values is not None and (values.dim() < rank or values.shape[axis] == 1)):
        return None
    *outer, rows = known.answer().nonzero().unbind(1)
    start, count = (int(rows[0]), len(rows)) if len(rows) else (0, 0)
    is_run = torch.equal(rows, torch.arange(start, start + count)) and all((at == at[:1]).all() for at in outer)
    if not is_run or (outer and not count):
        return (*[slice(None)] * axis, *outer, rows)
    return (*[slice(None)] * axis, *(int(at[0]) for at in outer), slice(start, start + count))


def read_rows(tensor: Any, rows: Any) -> Any:
    """Return the selected rows."""
    axis = rows.count(slice(None))
    *outer, last = rows[axis:]
    if isinstance(last, torch.Tensor):
        return tensor[rows]
    for index in outer:
        tensor = tensor.select(axis, index)
    return tensor[(*rows[:axis], last)]


def write_rows(tensor: Any, rows: Any, values: Any) -> Any:
    """Write values into the selected rows, and return the tensor."""
    tensor[rows] = values
    return tensor
