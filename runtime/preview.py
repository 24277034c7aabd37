"""Decode the latents of an intermediate step as if the sampler had ended there.

Before, a program whose last step has the latents p·a + q·b, and the tail that decodes them:
    step(x0; 1.0)
    …
    step(a, b; p, q)
    y = linear(a, b; k*p, k*q)
    image = decoder(y)

After, a preview of x0: the tail, with operands of the last step whose latents are those of x0:
    a = x0 / p
    b = 0
    y = linear(a, b; k*p, k*q)
    image = decoder(y)

This is exact where the last step has one operand, or where the tail reads its operands in the proportion p : q only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from diffc.runtime.engines.session import Array
from diffc.runtime.errors import RequestError
from diffc.runtime.interpreter import Interpreter, Values, linear
from diffc.runtime.program.program import Op, Program

WITHOUT_PREVIEWS = "use this program without previews"


def preview(
    interpreter: Interpreter, program: Program, step: Op, values: Values, scalars: Mapping[str, float]
) -> Callable[[], Array]:
    """Return a function that decodes the latents of ``step``: the program's first output, float32[batch, …].

    ``values`` are those at ``step``; the function holds what it needs of them. It raises `RequestError` where the tail
    needs values of later steps, or operands of the last step in another proportion than that of its latents.
    """
    last_step, tail = _ending(program)
    factors, offset = _combination(last_step, scalars)
    results = {value.name for op in tail for value in op.results}
    reads = {name for op in tail for name in op.operands()} - results - factors.keys()
    lengths = {length.name for length in program.lengths}
    inputs = {
        name: value for name, value in values.items() if name in reads | results | lengths
    }  # of the results: the noise
    latents = linear(step, values, scalars)

    def decode() -> Array:
        if reads - inputs.keys() or not (len(factors) == 1 or _reads_in_proportion(tail, factors, scalars)):
            raise RequestError("the latents of this step do not decode to an image alone", fix=WITHOUT_PREVIEWS)
        operands = _operands(program, factors, latents - offset)
        outputs: Array = interpreter.run(program, inputs | operands, scalars, ops=tail)[program.outputs[0]]
        return outputs

    return decode


def _ending(program: Program) -> tuple[Op, tuple[Op, ...]]:
    """Return the last step of a program, and the operations after it."""
    last = max(at for at, op in enumerate(program.ops) if op.operator == "step")
    return program.ops[last], program.ops[last + 1 :]


def _operands(program: Program, factors: Mapping[str, float], latents: Array) -> dict[str, Array]:
    """Return operands whose latents are ``latents``: zeros, but for the one of that shape with the largest factor."""
    types = {name: type_ for name, type_ in program.types().items() if name in factors}
    name = max(factors, key=lambda name: (types[name].fixed == latents.shape, abs(factors[name])))
    if factors[name] == 0.0 or types[name].fixed != latents.shape:
        raise RequestError("the latents of this step differ in shape from the last ones", fix=WITHOUT_PREVIEWS)
    operands = {operand: np.zeros(type_.fixed, type_.dtype) for operand, type_ in types.items()}
    return operands | {name: (latents / factors[name]).astype(types[name].dtype)}


def _combination(op: Op, scalars: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Return the factor of each operand of a linear combination, and its constant term."""
    names, values = list(op.operands()), [coefficient(scalars) for coefficient in op.coefficients]
    factors = dict.fromkeys(names, 0.0)
    for name, value in zip(names, values, strict=False):
        factors[name] += value
    return factors, values[-1] if len(values) > len(names) else 0.0


def _reads_in_proportion(ops: Iterable[Op], factors: Mapping[str, float], scalars: Mapping[str, float]) -> bool:
    """Return whether each operation that reads operands is a linear combination with multiples of their factors."""
    p = np.array(list(factors.values()))
    for op in ops:
        if factors.keys().isdisjoint(op.operands()):
            continue
        read, _ = _combination(op, scalars)
        q = np.array([read.get(name, 0.0) for name in factors])
        is_multiple = np.allclose(q * (p @ p), p * (p @ q), rtol=1e-6, atol=0)
        if op.operator != "linear" or not is_multiple:
            return False
    return True
