"""Find which rows reach which images of a program; refuse those in which rows of a given image reach other images.

An execution fills its batch with images of any requests, so each must depend on its own rows alone. Some pipelines
combine all the images that they are given, as one condition of every image.

The traced operations are run on random values. A component stands as a function of the rows of its inputs: each row of
its results mixes what is in the same row of its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.evaluate import apply
from diffc.compiler.ir.program import Op, Program, Ref, Value
from diffc.runtime.noise import sampled
from diffc.runtime.program.texts import TEXT_OPERATORS
from diffc.runtime.rng import Generator

Values = dict[str, torch.Tensor]

CHANGE = 1e-4
"""How far a value moves at least where it depends on an input that is moved by about one."""


def refuse_crossed_rows(program: Program) -> None:
    """Raise `CaptureError` where the first image depends on another row of a given image or array than the first.

    Programs whose sizes a request decides are not run.
    """
    if program.batch == 1 or program.lengths or not program.arrays:
        return
    random = torch.Generator().manual_seed(0)
    values = _constants(program) | _noises(program)
    values |= {item.name: torch.rand(item.type.fixed, generator=random) for item in program.arrays}
    before = _output(program, values)[0]
    for item in program.arrays:
        moved = values[item.name].clone()
        moved[1:] = torch.rand(moved[1:].shape, generator=random)
        change = (_output(program, values | {item.name: moved})[0] - before).abs().max()
        if not change <= CHANGE:  # NaN shows nothing
            what = f"every image of {program.name} depends on all rows of {item.name}"
            raise CaptureError(what, fix="build with --batch 1: the images are then sampled one by one")


def moves_last_image(program: Program, images: int) -> list[bool]:
    """Return for each noise of a program without arrays whether its last row changes the last of its images.

    False is certain. It is True for noise of several rows for an image, for integers, and for a program that cannot be
    run on random values, as where a mask selects rows.
    """
    values = _noises(program)
    smooth = {name: noise.requires_grad_() for name, noise in values.items() if noise.is_floating_point()}
    with torch.enable_grad():
        try:
            output = _output(program, _constants(program) | values)
        except (RuntimeError, IndexError):
            return [True] * len(values)
        last = output[-max(1, len(output) // images) :]
        factors = torch.rand(last.shape, generator=torch.Generator().manual_seed(0))
        mixed = (factors * last).sum() + sum(0.0 * noise.sum() for noise in smooth.values())
    gradients = dict(zip(smooth, torch.autograd.grad(mixed, [*smooth.values()]), strict=True)) if smooth else {}
    return [
        len(noise) != images or name not in gradients or bool((gradients[name][-1] != 0).any())
        for name, noise in values.items()
    ]


def _constants(program: Program) -> Values:
    return {table.name: torch.as_tensor(table.data) for table in program.tables}


def _noises(program: Program) -> Values:
    """Return values for the noises of a program, by name."""
    noises = (op for op in program.ops if op.operator == "noise")
    return {op.results[0].name: torch.from_numpy(sampled(op, Generator(0), op.results[0].type.fixed)) for op in noises}


def _output(program: Program, values: Values) -> torch.Tensor:
    values = dict(values)
    scalars = {item.name: item.default for item in program.inputs if item.default is not None}
    for op in (op for op in program.ops if op.operator not in TEXT_OPERATORS):
        if op.operator.startswith("aten.") or op.operator == "linear":
            results = apply(op, values, scalars)
        else:
            results = [values[v.name] if v.name in values else _mixed(op, v, values) for v in op.results]
        values |= {value.name: tensor for value, tensor in zip(op.results, results, strict=False)}
    return values[program.outputs[0]].double()


def _mixed(op: Op, value: Value, values: Values) -> torch.Tensor:
    """Return what stands for a result of a component, or for the tokens of a text: a sine of its inputs' rows."""
    (rows, *rest), dtype = value.type.fixed or (1,), getattr(torch, value.type.dtype)
    reads = [literal.name for _, literal in op.attrs if isinstance(literal, Ref) and literal.name in values]
    total = sum((_by_row(values[name], rows) * (at + 1) for at, name in enumerate(reads)), torch.zeros(rows))
    elements = torch.linspace(0, 1, max(1, torch.Size(rest).numel()))
    mixed = torch.sin(total[:, None] + elements).reshape(value.type.fixed)
    return mixed.to(dtype) if dtype.is_floating_point else torch.ones_like(mixed, dtype=dtype)


def _by_row(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the mean of each row of a tensor, repeated or taken together where a component's result has other rows."""
    shape: Sequence[int] = tensor.shape or (1,)
    means = tensor.float().reshape(shape[0], -1).mean(1)
    if rows % len(means) == 0:
        return means.repeat_interleave(rows // len(means))
    return means.reshape(rows, -1).mean(1) if len(means) % rows == 0 else means.mean().expand(rows)
