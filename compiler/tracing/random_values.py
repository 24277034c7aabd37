"""Compute what PyTorch's random operators return from noise of the kinds that programs have.

A random operator takes values of a generator's stream, and computes with them: ``bernoulli`` compares uniform values
with probabilities, ``multinomial`` divides probabilities by exponential values and takes the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Literal

Noise = Callable[..., torch.Tensor]
"""Record noise of the shape and layout of a tensor, an element type, and the keywords of its kind, and return it."""


def random_values(func: Any, arguments: Mapping[str, Any], result: torch.Tensor, noise: Noise) -> torch.Tensor:
    """Return what a random operator returns; ``result`` has its shape, layout and element type.

    Raises `CaptureError` for an operator whose distribution no noise has.
    """
    compute = OPERATORS.get(func._schema.name.removesuffix("_"))
    if compute is None:
        raise CaptureError(f"{func} computes random values of a kind that programs do not have", fix=KINDS)
    return compute(arguments, result, noise)


def arguments_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Map the names of an operator's arguments to their values, with those of its defaults."""
    parameters = func._schema.arguments
    values = {parameter.name: parameter.default_value for parameter in parameters if parameter.has_default_value()}
    return values | dict(zip((parameter.name for parameter in parameters), args, strict=False)) | dict(kwargs)


def order_of_axes(tensor: torch.Tensor) -> list[int]:
    """Return the axes of a tensor from the outermost in memory to the innermost: random operators fill memory."""
    if tensor.is_contiguous():
        return list(range(tensor.dim()))
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


@contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Keep ``torch.distributions`` from reading its parameters to check them."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def _normal(arguments: Mapping[str, Any], result: torch.Tensor, noise: Noise) -> torch.Tensor:
    values = noise(result, result.dtype)
    mean, std = arguments.get("mean", 0.0), arguments.get("std", 1.0)
    return values if (mean, std) == (0.0, 1.0) else values * std + mean


def _uniform(arguments: Mapping[str, Any], result: torch.Tensor, noise: Noise) -> torch.Tensor:
    values = noise(result, result.dtype, kind="uniform")
    low, high = arguments.get("from", 0.0), arguments.get("to", 1.0)
    return values if (low, high) == (0.0, 1.0) else values * (high - low) + low


def _exponential(arguments: Mapping[str, Any], result: torch.Tensor, noise: Noise) -> torch.Tensor:
    values = noise(result, result.dtype, kind="exponential")
    return values if arguments["lambd"] == 1.0 else values / arguments["lambd"]


def _bernoulli(arguments: Mapping[str, Any], result: torch.Tensor, noise: Noise) -> torch.Tensor:
    # One probability is compared in float64, probabilities in their own type.
    probability = arguments.get("p", arguments["self"])
    dtype = probability.dtype if isinstance(probability, torch.Tensor) else torch.float64
    return torch.lt(noise(result, dtype, kind="uniform"), probability).to(result.dtype)


def _integers(arguments: Mapping[str, Any], result: torch.Tensor, noise: Noise) -> torch.Tensor:
    limits: dict[str, Literal] = {"low": arguments.get("low", 0), "high": arguments["high"]}
    values = noise(result, torch.int64, kind="integers", **limits)
    return values if result.dtype == torch.int64 else values.to(result.dtype)


def _multinomial(arguments: Mapping[str, Any], result: torch.Tensor, noise: Noise) -> torch.Tensor:
    weights, samples = arguments["self"], arguments["num_samples"]
    if samples > 1 and arguments["replacement"]:
        raise CaptureError("torch.multinomial returns several samples with replacement", fix="call it for each sample")
    ratios = torch.div(weights, noise(weights, weights.dtype, kind="exponential"))
    return ratios.argmax(-1, keepdim=True) if samples == 1 else ratios.topk(samples)[1]


FILLED = 16
"""PyTorch generates as many normal values, or more, in another way where they lie in memory without gaps, in order."""

KINDS = "use torch.randn, rand, randint, bernoulli or multinomial"

OPERATORS: Mapping[str, Callable[[Mapping[str, Any], torch.Tensor, Noise], torch.Tensor]] = {
    "aten::randn": _normal,
    "aten::randn_like": _normal,
    "aten::normal": _normal,
    "aten::normal_functional": _normal,
    "aten::rand": _uniform,
    "aten::rand_like": _uniform,
    "aten::uniform": _uniform,
    "aten::exponential": _exponential,
    "aten::bernoulli": _bernoulli,
    "aten::randint": _integers,
    "aten::randint_like": _integers,
    "aten::multinomial": _multinomial,
}
"""The random operators, in place or not, by name: what they compute, and from which noise."""
