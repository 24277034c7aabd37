"""Compute equal operations once.

Paper: Cocke, "Global common subexpression elimination", 1970
       https://doi.org/10.1145/390013.808480

Before:
    n: float32[2] = noise()
    a: float32[1] = linear(; g)
    b: float32[1] = linear(; g)
    x: float32[2] = linear(n, a; 1.0, 2.0)
    y: float32[2] = linear(x, b; 1.0, 2.0)

After:
    n: float32[2] = noise()
    a: float32[1] = linear(; g)
    x: float32[2] = linear(n, a; 1.0, 2.0)
    y: float32[2] = linear(x, a; 1.0, 2.0)
"""

from __future__ import annotations

from dataclasses import replace

from diffc.compiler.ir.program import Op, Program


def common_subexpressions(program: Program) -> Program:
    """Keep the first of equal operations; each ``noise``, and each mark of a step, is one of its own."""
    first: dict[str, Op] = {}
    names: dict[str, str] = {}
    ops = list[Op]()
    for op in program.ops:
        read = op.renamed(names)
        same = str(replace(read, results=tuple(replace(value, name="") for value in read.results)))
        if read.operator in ("noise", "step") or same not in first:
            first[same] = read
            ops.append(read)
        else:
            names |= {value.name: earlier.name for value, earlier in zip(op.results, first[same].results, strict=True)}
    return replace(program, ops=tuple(ops), outputs=tuple(names.get(name, name) for name in program.outputs)).live()
