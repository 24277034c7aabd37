"""Record functions that shrink masks pixel by pixel in Python, as a few operations on the whole mask.

Such a function branches on each pixel of a given mask, so it cannot be traced. What it computes is learned instead: a
mask with one hole shows which neighbours a hole clears. The hypothesis, a pixel stays where none of these neighbours
has a hole, is then compared with the function on random masks of the traced size, and dropped where any pixel differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, TypeVar

import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.pipeline_errors import pipeline_errors
from diffc.compiler.tracing.symbolic_tensor import Symbolic
from diffc.compiler.tracing.text_functions import replaced

T = TypeVar("T")

PROBE = 9
"""The edge of the mask whose middle is a hole: it shows neighbours up to four pixels away."""

SHARES = (0.0, 0.02, 0.1, 0.5, 0.9, 1.0)
"""The shares of holes in the random masks that a function is compared on."""


def with_mask_functions(run: Callable[[], T]) -> T:
    """Run a trace, and where it fails in a function that shrinks a mask, run it again with that function recorded."""
    try:
        return run()
    except CaptureError as error:
        function = _failed_function(error)
        shrinking = _learned(*function) if function else None
        if shrinking is None:
            raise
    with replaced(sys.modules[shrinking.function.__module__], shrinking.function.__name__, shrinking):
        return run()


@dataclass(frozen=True)
class Shrinking:
    """Clear the pixels of masks [n, 1, H, W] that have a hole, a value other than 1, at one of the ``neighbours``.

    With ``writes`` the function changes the masks that it is called with; with ``returns_argument`` it returns these.
    """

    function: FunctionType
    neighbours: frozenset[tuple[int, int]]
    writes: bool
    returns_argument: bool

    def __call__(self, masks: Any) -> Any:
        """Record the function of a mask that only the run knows; call it with every other one."""
        if not isinstance(masks, Symbolic):
            return self.function(masks)
        learned = _learned(self.function, tuple(masks.shape))
        if learned is None:
            what = f"{self.function.__name__} computes something else with masks {list(masks.shape)}"
            raise CaptureError(what, fix="shrink masks of every size alike")
        shrunk = learned.shrunk(masks)
        if learned.writes:
            masks.copy_(shrunk)
        return masks if learned.returns_argument else shrunk

    def shrunk(self, masks: torch.Tensor) -> torch.Tensor:
        """Return what the function returns."""
        height, width = masks.shape[-2:]
        edge = PROBE // 2
        holes = torch.nn.functional.pad((masks != 1).to(masks.dtype), (edge,) * 4)
        cleared = torch.zeros_like(masks)
        for down, right in sorted(self.neighbours):
            top, left = edge - down, edge - right
            cleared = cleared + holes[..., top : top + height, left : left + width]
        return torch.where(cleared > 0, torch.zeros_like(masks), masks)


def _failed_function(error: CaptureError) -> tuple[FunctionType, tuple[int, ...]] | None:
    """Return the innermost function of a module that takes a mask alone and reads it, with the mask's shape."""
    innermost, cause = None, error.__cause__ or error
    frames = cause.__traceback__
    while frames is not None:
        frame, frames = frames.tb_frame, frames.tb_next
        function = frame.f_globals.get(frame.f_code.co_name)
        if isinstance(function, FunctionType) and function.__code__ is frame.f_code and frame.f_code.co_argcount == 1:
            mask = frame.f_locals.get(frame.f_code.co_varnames[0])
            if isinstance(mask, Symbolic) and mask.dim() == 4 and mask.shape[1] == 1 and mask.is_floating_point():
                innermost = function, tuple(mask.shape)
    return innermost


@cache
def _learned(function: FunctionType, shape: Sequence[int]) -> Shrinking | None:
    """Return what a function does to masks of a shape; None where it is not to clear the neighbours of holes."""
    try:
        with pipeline_errors():
            neighbours = _neighbours(function)
            writes, returns_argument = set[bool](), set[bool]()
            random = torch.Generator().manual_seed(0)
            for share in SHARES:
                holes = torch.rand(shape, generator=random)
                masks = torch.where(torch.rand(shape, generator=random) < share, holes, 1.0)
                expected, after = _called(function, masks)
                returns_argument.add(expected.data_ptr() == after.data_ptr())
                if not torch.equal(expected, Shrinking(function, neighbours, False, False).shrunk(masks)):
                    return None
                if not torch.equal(expected, masks):
                    writes.add(torch.equal(after, expected))
                    writes.add(not torch.equal(after, masks))
    except CaptureError:
        return None
    is_clear = len(writes) == 1 and len(returns_argument) == 1
    return Shrinking(function, neighbours, True in writes, True in returns_argument) if is_clear else None


def _neighbours(function: FunctionType) -> frozenset[tuple[int, int]]:
    """Return where the neighbours lie that a hole clears, in rows below and columns to the right of it."""
    middle = PROBE // 2
    probe = torch.ones(1, 1, PROBE, PROBE)
    probe[..., middle, middle] = 0
    cleared = _called(function, probe)[0] == 0
    offsets = (cleared[0, 0].nonzero() - middle).tolist() if cleared.shape == probe.shape else []
    return frozenset((down, right) for down, right in offsets) - {(0, 0)}


def _called(function: FunctionType, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a function returns of masks, and what it leaves of them."""
    masks = masks.clone()
    returned = function(masks)
    is_mask = isinstance(returned, torch.Tensor) and returned.shape == masks.shape and returned.dtype == masks.dtype
    return (returned if is_mask else torch.zeros(0)), masks
