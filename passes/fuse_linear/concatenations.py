"""Follow concatenations through linear arithmetic: an operation on one becomes operations on its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from diffc.compiler.analysis.linear_form import LinearForms
from diffc.compiler.graph.aten import overload
from diffc.compiler.ir.program import UNTYPED, Op, Program, Ref, Value

aten = torch.ops.aten

SCALING = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default)
"""Operators that scale each part of a concatenation alike."""


class Concatenations:
    """Hold the parts and the axis of concatenations by name, and the linear forms of a program, which stop at them.

    ``last_use`` maps values to the index of their last reader, and ``computed`` returns the name of a value once it is
    computed.
    """

    def __init__(self, program: Program, last_use: dict[str, int], computed: Callable[[str], str]) -> None:
        self.parts: dict[str, tuple[tuple[str, ...], int]] = {}
        self.forms = LinearForms(program, opaque=self.parts)
        self.last_use, self.computed = last_use, computed

    def follow(self, op: Op) -> bool:
        """Remember an operation that concatenates, or scales a concatenation; return False for every other one."""
        return self._concatenates(op) or self._scales(op)

    def _concatenates(self, op: Op) -> bool:
        """Remember a concatenation of values of its own type; return False for every other operation."""
        if op.operator == "concat":
            operands, axis = op.args, op.attr("axis", 0)
        elif op.operator == "aten.cat.default" and isinstance(op.args[0], tuple):
            operands, axis = op.args[0], op.args[1] if len(op.args) > 1 else op.attr("axis", 0)
        else:
            return False
        names = [operand.name for operand in operands if isinstance(operand, Ref)]
        if not isinstance(axis, int) or len(names) < len(operands):
            return False
        name, type_ = op.results[0].name, op.results[0].type
        if len({type_.dtype, *(self.forms.types[part].dtype for part in names)} - {UNTYPED.dtype}) > 1:
            return False
        parts = tuple(self.computed(part) if part in self.parts else part for part in names)
        self._remember(name, parts, axis % len(type_.shape) if type_.shape else axis)
        return True

    def _scales(self, op: Op) -> bool:
        """Scale the parts of a concatenation instead of it; return False for every other operation."""
        concats = [a.name for a in op.args if isinstance(a, Ref) and a.name in self.parts]
        if overload(op.operator) not in SCALING or len(concats) != 1:
            return False
        name, types = op.results[0].name, self.forms.types
        if types.get(concats[0]) != types.get(name):
            return False
        parts, axis = self.parts[concats[0]]
        scaled: dict[str, str] = {}
        for part in dict.fromkeys(parts):
            on_part = replace(op.renamed({concats[0]: part}), results=(Value(name, types[part]),))
            form = self.forms.of_operation(on_part)
            if form is None:
                return False
            scaled[part] = f"{name}.{part}"
            self.forms.sums[scaled[part]], types[scaled[part]] = form, types[part]
        self._remember(name, tuple(scaled[part] for part in parts), axis)
        return True

    def _remember(self, name: str, parts: Sequence[str], axis: int) -> None:
        """Note a concatenation; its parts live as long as it does."""
        self.parts[name] = tuple(parts), axis
        for part in parts:
            self.last_use[part] = max(self.last_use.get(part, -1), self.last_use.get(name, -1))
