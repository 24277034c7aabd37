"""Sum the noises of seeds that a request's seed spawns before they are sampled: one array for many.

Source: the Brownian trees that stochastic samplers draw their increments from, such as those of Li et al., "Scalable
        Gradients for Stochastic Differential Equations", AISTATS 2020, https://arxiv.org/abs/2001.01328

An increment between two times is a sum over the nodes of the tree above them, some thirty for each time.

Before:
    x: float32[1, 2] = noise()
    a: float32[1, 2] = noise(pool=24, terms=[[1.0, 0, 0, 0]])
    b: float32[1, 2] = noise(pool=24, terms=[[1.0, 0, 1, 1]])
    y: float32[1, 2] = linear(x, a, b; 1.0, 0.5, -0.25)

After:
    x: float32[1, 2] = noise()
    terms0: float32[1, 2] = noise(pool=24, terms=[[0.5, 0, 0, 0], [-0.25, 0, 1, 1]])
    y: float32[1, 2] = linear(x, terms0; 1.0, 1.0)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffc.compiler.ir.program import Names, Op, Polynomial, Program, Ref

Attributes = tuple[tuple[str, Any], ...]


def sum_spawned_noise(program: Program) -> Program:
    """Replace the noises of spawned seeds that a ``linear`` adds, with numbers as coefficients, by their sum."""
    spawned = {op.results[0].name: op for op in program.ops if op.operator == "noise" and op.attr("terms") is not None}
    names, ops = Names(program.types()), list[Op]()
    for op in program.ops:
        written = _summed(op, spawned, names) if op.operator == "linear" else [op]
        if _is_one_noise(written):
            spawned[op.results[0].name] = written[0]
        ops += written
    return replace(program, ops=tuple(ops)).live()


def _is_one_noise(written: Sequence[Op]) -> bool:
    """Return whether a ``linear`` has become a noise, of which it is a copy."""
    first, *rest = written
    return len(rest) == 1 and rest[0].args == (Ref(first.results[0].name),) and len(rest[0].coefficients) == 1


def _summed(op: Op, spawned: Mapping[str, Op], names: Names) -> list[Op]:
    """Return a ``linear`` that reads one noise for each kind of those that it read, and these noises before it."""
    constant = op.coefficients[len(op.args) :]
    remaining = list[tuple[Any, Polynomial]]()
    sums = defaultdict[Any, dict[tuple[int, ...], float]](lambda: defaultdict(float))
    for operand, coefficient in zip(op.args, op.coefficients, strict=False):
        noise = spawned.get(operand.name) if isinstance(operand, Ref) else None
        if noise is None or not coefficient.is_constant or noise.results[0].type != op.results[0].type:
            remaining.append((operand, coefficient))
            continue
        terms: Any = noise.attr("terms")
        others = tuple(attribute for attribute in noise.attrs if attribute[0] != "terms")
        for factor, *place in terms:
            sums[noise.args, others][tuple(place)] += factor * coefficient({})
    noises = list[Op]()
    for (args, attrs), terms in sums.items():
        result = replace(op.results[0], name=names.new("terms"))
        summed = ("terms", tuple((factor, *place) for place, factor in terms.items()))
        noises.append(Op("noise", args, (*attrs, summed), (), (result,)))
        remaining.append((Ref(result.name), Polynomial.constant(1.0)))
    if not noises:
        return [op]
    args, coefficients = (tuple(item) for item in zip(*remaining, strict=True))
    return [*noises, replace(op, args=args, coefficients=(*coefficients, *constant))]
