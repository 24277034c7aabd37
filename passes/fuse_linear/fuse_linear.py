"""Bring the arithmetic between calls into normal form: one ``linear`` for each value that a call needs.

Source: diffc, decision 0002: every solver of the diffusion ODE or SDE that diffusers has is linear in the latents, the
        model's outputs and the noise (Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator",
        https://arxiv.org/abs/2204.13902, section 3).

A value is kept as a sum of atoms (results of calls, of noise and of earlier ``linear``) with polynomial coefficients,
in double precision, until something that is not linear reads it. The new ``linear`` then replaces the state that it was
computed from in the live sums, where none of them grows longer, so that most solvers need the latest state only.

Before:
    n = noise()
    x0 = aten.mul.Tensor(n, 2.0)
    y0 = unet(sample=x0)
    a = aten.mul.Tensor(y0, 0.5)
    x1 = aten.sub.Tensor(x0, a)
    y1 = unet(sample=x1)
    b = aten.add.Tensor(y1, y0)
    x2 = aten.add.Tensor(x1, b)
    y2 = decoder(z=x2)

After:
    n = noise()
    x0 = linear(n; 2.0)
    y0 = unet(sample=x0)
    x1 = linear(x0, y0; 1.0, -0.5)
    y1 = unet(sample=x1)
    x2 = linear(x1, y1, y0; 1.0, 1.0, 1.0)
    y2 = decoder(z=x2)
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import torch

from diffc.compiler.analysis.linear_form import ONE, Sum, combined, substituted
from diffc.compiler.graph.aten import overload
from diffc.compiler.ir.program import Op, Polynomial, Program, Ref, Value
from diffc.passes.fuse_linear.concatenations import Concatenations

aten = torch.ops.aten

LONGEST = 8
"""A sum of more atoms than this becomes a value of its own when it outlives a call."""

NEW = "%"
"""Starts the names of new values until all are known; no name in a program's text does."""


def fuse_linear(program: Program) -> Program:
    """Replace the linear arithmetic of ATen by ``linear``, ``concat`` and ``split``; leave the rest as it is."""
    return _Fusion(program).run()


class _Fusion:
    """Rewrite a program: linear arithmetic as late as possible, other operations where they stand."""

    def __init__(self, program: Program) -> None:
        self.program, self.graphs = program, {graph.name for graph in program.graphs}
        self.states = dict[str, None]()  # noise and sums that are computed, the oldest first
        self.steps = list[Op]()  # reports of latents that wait for the next operation that is computed
        self.ops = list[Op]()
        self.last_use = {name: i for i, op in enumerate(program.ops) for name in op.reads()}
        self.last_use |= dict.fromkeys(program.outputs, len(program.ops))
        self.concats = Concatenations(program, self.last_use, self._computed)
        self.forms = self.concats.forms
        self.at = 0

    def run(self) -> Program:
        for at, op in enumerate(self.program.ops):
            self.at = at
            self._visit(op)
        outputs = tuple(self._computed(name) for name in self.program.outputs)
        self._report_steps()
        return _numbered(replace(self.program, ops=tuple(self.ops), outputs=outputs).live())

    def _visit(self, op: Op) -> None:
        if op.operator == "step":
            self.steps.append(op)
            return
        form = self.forms.of_operation(op)
        if form is not None:
            self.forms.sums[op.results[0].name] = form
        elif not self.concats.follow(op):
            self._emit(_as_split(op) or op)

    def _is_read_after(self, name: str, at: int) -> bool:
        waiting = any(name in _operands(op) for op in self.steps)
        return waiting or self.last_use.get(name, -1) > at

    # Operations that are computed

    def _emit(self, op: Op) -> None:
        """Write an operation that is not linear, and before it the values that it reads."""
        names = {name: self._computed(name) for name in dict.fromkeys(op.reads()) if name in self.forms.types}
        if op.operator in self.graphs:
            self._shorten()
        self._report_steps()
        self.ops.append(op.renamed(names))
        if op.operator == "noise":
            self.states[op.results[0].name] = None
        self.forms.are_atoms(value.name for value in op.results)

    def _shorten(self) -> None:
        sums = self.forms.sums
        for name in [n for n, s in sums.items() if len(s) > LONGEST and self._is_read_after(n, self.at)]:
            self._computed(name)

    def _report_steps(self) -> None:
        while self.steps:
            op = self.steps.pop(0)
            names = _operands(op)
            sums = [self.forms.of_operand(Ref(name)) or {self._computed(name): ONE} for name in names]
            latents = combined(sums, op.coefficients)
            if not latents.keys() - {""}:
                latents = {self._computed(names[0]): Polynomial()} | latents
            self.ops.append(_weighted("step", latents))

    def _computed(self, name: str) -> str:
        """Make sure that a value is computed, and return the name under which it stands."""
        if name in self.concats.parts:
            return self._joined(name)
        form = self.forms.sums.get(name)
        if form is None:
            return name
        if self.forms.is_atom(name):
            return next(iter(form))
        new = Value(f"{NEW}{len(self.ops)}", self.forms.types[name])
        self.forms.types[new.name] = new.type
        self._write(new, name, form)
        return new.name

    def _write(self, new: Value, name: str, form: Sum) -> None:
        """Compute a sum, and express by the new state the sums that contain the oldest state in it."""
        sums, types = self.forms.sums, self.forms.types
        self.ops.append(_weighted("linear", form, (new,)))
        alike = [equal for equal, theirs in sums.items() if theirs == form and types.get(equal) == new.type]
        sums |= {equal: {new.name: ONE} for equal in (*alike, new.name, name)}
        living = {n: s for n, s in sums.items() if self._is_read_after(n, self.at - 1) and n != new.name}
        for old in self.states:
            if old in form and form[old].is_constant and types.get(old) == new.type:
                changed = substituted(living, old, new.name, form)
                if changed is not None:
                    sums |= changed
                    break
        self.states[new.name] = None

    def _joined(self, name: str) -> str:
        if name not in self.forms.sums:
            parts, axis = self.concats.parts[name]
            operands = tuple(Ref(self._computed(part)) for part in parts)
            result = Value(name, self.forms.types[name])
            self.ops.append(Op("concat", operands, (("axis", axis),), (), (result,)))
            self.forms.are_atoms((name,))
        return name


def _operands(op: Op) -> list[str]:
    return [operand.name for operand in op.args if isinstance(operand, Ref)]


def _weighted(operator: str, form: Sum, results: tuple[Value, ...] = ()) -> Op:
    """Write a sum as an operation: its atoms, their coefficients, and the constant term if there is one."""
    atoms = [atom for atom in form if atom]
    constant = [form.get("", Polynomial())] if "" in form or not atoms else []
    return Op(operator, tuple(map(Ref, atoms)), (), tuple([form[atom] for atom in atoms] + constant), results)


def _as_split(op: Op) -> Op | None:
    """Write a division into equal parts as the built-in operation; return None for every other operation."""
    if overload(op.operator) not in (aten.split.Tensor, aten.split.sizes) or not isinstance(op.args[0], Ref):
        return None
    type_, axis = op.results[0].type, op.args[2] if len(op.args) > 2 else op.attr("dim", 0)
    if len({value.type for value in op.results}) != 1 or not isinstance(axis, int):
        return None
    return Op("split", op.args[:1], (("axis", axis % len(type_.shape) if type_.shape else axis),), (), op.results)


def _numbered(program: Program) -> Program:
    """Call new values x0, x1, …, past the names that the program keeps."""
    types = program.types()
    free = (name for i in count() if (name := f"x{i}") not in types)
    names = {name: next(free) for name in types if name.startswith(NEW)}
    ops = tuple(
        replace(op.renamed(names), results=tuple(Value(names.get(v.name, v.name), v.type) for v in op.results))
        for op in program.ops
    )
    return replace(program, ops=ops, outputs=tuple(names.get(name, name) for name in program.outputs))
