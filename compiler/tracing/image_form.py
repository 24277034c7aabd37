"""Decide whether a pipeline is handed its images as tensors or as images.

A user hands over images, which the pipeline prepares; for tensors it skips some of that, or all. Tensors are as good
where both come to the same: each call of a component receives the same arguments. Values decide that: one random image
runs through the arithmetic of both programs, between random results of the components.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.evaluate import Executor
from diffc.compiler.ir.program import BUILTINS, Literal, Op, Program, Ref, Type
from diffc.compiler.tracing.symbolic_array import FIX
from diffc.compiler.tracing.symbolic_pixels import symbolic_images
from diffc.runtime.program.texts import TEXT_OPERATORS

AsImage = Callable[[torch.Tensor], Any]
"""Converts a tensor [batch, channels, height, width] in [0, 1] to an image, or a list of several."""

TOLERANCE = 1e-4
"""The largest difference of equal arguments, relative to the largest value: a step of 8 bits is 40 times as much."""

HOLLOW = np.object_.__name__
"""The element type of symbolic arrays to functions in C, which PyTorch's constructors name where they refuse it."""

UNREADABLE = ("DataDependentOutputException", "DynamicOutputShapeException")
"""Errors of PyTorch where the value of a symbolic tensor is read."""


def image_form(trace: Callable[[AsImage | None], Program]) -> AsImage | None:
    """Return how the images of the request are handed to the pipeline; None for tensors.

    ``trace`` traces it with either. Raises `CaptureError` where images cannot be traced, and tensors may mean something
    else.
    """
    images, tensors = _outcome(trace, symbolic_images), _outcome(trace, None)
    if isinstance(images, Program):
        is_same = isinstance(tensors, Program) and have_same_arguments(images, tensors)
        return None if is_same else symbolic_images
    if isinstance(tensors, Program) and _is_of_symbols(images):
        what = f"the pipeline prepares images with a function that is not recorded: {images.__cause__}"
        raise CaptureError(what, where=images.where, fix=FIX) from images
    if isinstance(tensors, Program) and not _is_refusal(images):
        raise images
    return symbolic_images if not isinstance(tensors, Program) and _is_refusal(tensors) else None


def _outcome(trace: Callable[[AsImage | None], Program], form: AsImage | None) -> Program | CaptureError:
    try:
        return trace(form)
    except CaptureError as error:
        return error


def _is_refusal(error: CaptureError) -> bool:
    """Return whether the pipeline itself refuses its arguments, and not this compiler what it does with them."""
    cause = error.__cause__
    return cause is not None and not isinstance(cause, CaptureError) and type(cause).__name__ not in UNREADABLE


def _is_of_symbols(error: CaptureError) -> bool:
    """Return whether symbolic images may be what was refused: by Pillow, NumPy or this compiler, or as an array."""
    cause = error.__cause__
    if cause is None or not _is_refusal(error):
        return False
    *_, (innermost, _line) = traceback.walk_tb(cause.__traceback__)
    package = innermost.f_globals.get("__name__", "").partition(".")[0]
    return package in ("PIL", "numpy", "diffc") or (isinstance(cause, TypeError) and HOLLOW in str(cause))


def check_rows(batch: Program, single: Program) -> None:
    """Refuse a list of images that a pipeline takes for several of one prompt, and not for one of each.

    Components of a batch are called with the arguments of one image, in more rows.
    """
    calls, others = _calls(batch), _calls(single)
    is_same = [_ports(op) for op in calls] == [_ports(op) for op in others]
    if not is_same or any(_row(batch, a) != _row(single, b) for a, b in zip(calls, others, strict=True)):
        what = "the pipeline takes a list of images as several of one prompt"
        raise CaptureError(what, fix="build for a batch of 1, and name several images with --input image=image,image")


def _row(program: Program, call: Op) -> list[tuple[Any, ...]]:
    """List the shapes of a call's arguments and results, each without its first size."""
    types = program.types()
    return [types[name].shape[1:] for name in (*call.reads(), *(result.name for result in call.results))]


def have_same_arguments(one: Program, another: Program) -> bool:
    """Return whether components are called, and results returned, with the same values for one random image.

    Programs whose sizes a request decides are not compared, and count as different.
    """
    if one.lengths or another.lengths:
        return False
    calls, others = _calls(one), _calls(another)
    if [_ports(op) for op in calls] != [_ports(op) for op in others]:
        return False
    first, second = _Values(one), _Values(another)
    pairs = [(a.attr(port), b.attr(port)) for a, b in zip(calls, others, strict=True) for port, _ in a.attrs]
    pairs += [(Ref(a), Ref(b)) for a, b in zip(one.outputs, another.outputs, strict=True)]
    return all(
        _are_equal(x, y) for x, y in zip(first([a for a, _ in pairs]), second([b for _, b in pairs]), strict=True)
    )


def _calls(program: Program) -> list[Op]:
    """List the calls of components."""
    return [op for op in program.ops if not op.operator.startswith("aten.") and op.operator not in BUILTINS]


def _ports(call: Op) -> tuple[str, list[str]]:
    return call.operator, [port for port, _ in call.attrs]


class _Values:
    """Compute values of a program from random inputs, tokens, noise and results of components."""

    def __init__(self, program: Program) -> None:
        self.program = program
        generator = torch.Generator().manual_seed(0)
        self.known = {item.name: _random(item.type, generator, is_image=item.is_image) for item in program.arrays}
        for op in program.ops:
            if not op.operator.startswith("aten.") and op.operator not in TEXT_OPERATORS:
                self.known |= {result.name: _random(result.type, generator) for result in op.results}

    def __call__(self, literals: Sequence[Literal]) -> list[Any]:
        names = [literal.name for literal in literals if isinstance(literal, Ref)]
        with Executor(self.program) as executor:
            values = executor.run(self.known, outputs=list(dict.fromkeys(names)))
        return [values[literal.name] if isinstance(literal, Ref) else literal for literal in literals]


def _random(type_: Type, generator: torch.Generator, *, is_image: bool = False) -> torch.Tensor:
    """Return values from 0 to 1, for an image of 8 bits; ones for whole numbers."""
    values, dtype = torch.rand(type_.fixed, generator=generator), getattr(torch, type_.dtype)
    values = torch.round(values * 255) / 255 if is_image else values
    return (values if dtype.is_floating_point else torch.ones_like(values)).to(dtype)


def _are_equal(one: Any, another: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(another, torch.Tensor):
        return bool(one == another)
    if one.shape != another.shape or one.dtype != another.dtype:
        return False
    one, another = one.double(), another.double()
    scale = max(1.0, float(one.abs().max())) if one.numel() else 1.0
    return torch.allclose(one, another, rtol=0.0, atol=TOLERANCE * scale)
