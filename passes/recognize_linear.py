"""Replace chains that stack, move and weigh tensors by an equal ``linear``.

Source: the weighted sums that multistep solvers write as an einsum over stacked differences, such as Zhao et al.,
        "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", NeurIPS 2023,
        equation 8, https://arxiv.org/abs/2302.04867

Only operators that are linear for certain are followed. The coefficients of a chain are measured: it is run in
double precision on random tensors, which must explain the result exactly, element by element.

Before:
    a: float32[1, 2] = noise()
    b: float32[1, 2] = noise()
    s: float32[1, 2, 2] = aten.stack.default([a, b], 1)
    y: float32[1, 2] = aten.sum.dim_IntList(s, [1])

After:
    a: float32[1, 2] = noise()
    b: float32[1, 2] = noise()
    y: float32[1, 2] = linear(a, b; 1.0, 1.0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from diffc.compiler.graph.aten import Trait, has, overload
from diffc.compiler.graph.evaluate import apply
from diffc.compiler.ir.program import Literal, Op, Polynomial, Program, Ref, Type

aten = torch.ops.aten

EXACT = 1e-9


def recognize_linear(program: Program) -> Program:
    """Rewrite every value that is a weighted sum of values of its own type but is computed through other shapes."""
    types = program.types()
    constants = {table.name: torch.as_tensor(table.data) for table in program.tables if table.data is not None}
    producers: dict[str, Op] = {}
    ops = list[Op]()
    for op in program.ops:
        if _is_linear(op, constants):
            replacement = _weighted_sum(op, producers, types, constants)
            op = replacement or op
            if replacement is None:
                producers[op.results[0].name] = op
        ops.append(op)
    return replace(program, ops=tuple(ops)).live()


def _is_linear(op: Op, constants: Mapping[str, torch.Tensor]) -> bool:
    """Return whether an operation moves, sums or weighs elements of values, and is linear in them."""
    operator = overload(op.operator)
    if operator is None or len(op.results) != 1:
        return False
    variable = [name for name in op.reads() if name not in constants]
    divides_by_value = operator is aten.div.Tensor and isinstance(op.args[1], Ref) and op.args[1].name not in constants
    moves = has(operator, Trait.MOVES) or (has(operator, Trait.LINEAR) and not has(operator, Trait.POINTWISE))
    return moves or (has(operator, Trait.BILINEAR) and len(variable) == 1 and not divides_by_value)


def _weighted_sum(
    op: Op, producers: Mapping[str, Op], types: Mapping[str, Type], constants: Mapping[str, torch.Tensor]
) -> Op | None:
    """Measure the coefficients of the values that an operation depends on; None if it is no weighted sum of them."""
    chain, leaves = _chain(op, producers, constants)
    type_ = op.results[0].type
    if len(chain) < 2 or not type_.is_float or type_.lengths or not math.prod(type_.fixed):
        return None
    if not leaves or any(types[leaf] != type_ for leaf in leaves):
        return None
    generator = torch.Generator().manual_seed(0)
    samples = [
        _sample(chain, leaves, type_, constants, generator) for _ in range(2 + len(leaves) // math.prod(type_.fixed))
    ]
    columns, results = torch.cat([probes for probes, _ in samples]), torch.cat([result for _, result in samples])
    weights = torch.linalg.lstsq(columns, results[:, None], driver="gelsd").solution[:, 0]
    if (columns @ weights - results).abs().max() > EXACT * (1 + results.abs().max()):
        return None
    operands: tuple[Literal, ...] = tuple(map(Ref, leaves))
    return Op("linear", operands, (), tuple(Polynomial.constant(w) for w in _rounded(weights)), op.results)


def _sample(
    chain: Sequence[Op],
    leaves: Sequence[str],
    type_: Type,
    constants: Mapping[str, torch.Tensor],
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a chain on random leaves; return them, one a column, and the result."""
    probes = {leaf: torch.randn(type_.fixed, generator=generator, dtype=torch.float64) for leaf in leaves}
    values = probes | {name: c.double() if c.is_floating_point() else c for name, c in constants.items()}
    for link in chain:
        values[link.results[0].name] = apply(link, values, {})[0]
    columns = torch.stack([probe.flatten() for probe in probes.values()], dim=1)
    return columns, values[chain[-1].results[0].name].flatten()


def _chain(op: Op, producers: Mapping[str, Op], constants: Mapping[str, torch.Tensor]) -> tuple[list[Op], list[str]]:
    """Follow linear operations back to the values where they start."""
    chain, leaves, pending = {id(op): op}, dict[str, None](), [op]
    while pending:
        for name in pending.pop().reads():
            if name in producers and id(producers[name]) not in chain:
                chain[id(producers[name])] = producers[name]
                pending.append(producers[name])
            elif name not in producers and name not in constants:
                leaves[name] = None
    order = [id(link) for link in producers.values()]
    return [*sorted((o for o in chain.values() if o is not op), key=lambda o: order.index(id(o))), op], list(leaves)


def _rounded(weights: torch.Tensor) -> list[float]:
    """Undo the rounding of the measurement where the weight is a number that float32 holds."""
    single = weights.float().double()
    return torch.where((weights - single).abs() < EXACT * weights.abs(), single, weights).tolist()
