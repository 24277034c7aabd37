"""Bring the arithmetic between calls into normal form: one ``linear`` for each value that a call needs.

Source: diffc, decision 0002: every solver of the diffusion ODE or SDE that diffusers has is linear in the latents, the
        model's outputs and the noise (Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator",
        https://arxiv.org/abs/2204.13902, section 3).

A value is kept as a sum of atoms (results of calls, of noise and of earlier ``linear``) with polynomial coefficients,
in double precision, until something that is not linear reads it. The new ``linear`` then replaces the state that it was
made from in the sums that stay alive, where none of them grows longer, so that most solvers need the latest state only.

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

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from diffc.compiler.ir.program import Literal, Op, Polynomial, Program, Ref, Value

ONE = Polynomial.constant(1.0)
LONGEST = 8
"""A sum of more atoms than this becomes a value of its own when it outlives a call."""

ROUNDING = 1e-12
"""What is left of a coefficient, relative to what cancelled, when it should have vanished."""

GROWTH = 100.0
"""A sum is not expressed by a state that would make its coefficients larger than this: too much would cancel."""

NEW = "%"
"""Starts the names of new values until all are known; no name in a program's text does."""

Sum = dict[str, Polynomial]
"""Coefficients by atom; the empty name stands for the constant term."""

IDENTITIES = (
    "alias",
    "clone",
    "detach",
    "contiguous",
    "view",
    "reshape",
    "_unsafe_view",
    "expand",
    "repeat",
    "_to_copy",
    "slice",
)
"""ATen operators that return their first operand's elements as they are, if they keep its shape."""

CONSTANTS = {"zeros_like": 0.0, "ones_like": 1.0}
"""ATen operators that give the same number everywhere."""


def fuse_linear(program: Program) -> Program:
    """Replace the linear arithmetic of ATen by ``linear``, ``concat`` and ``split``; leave the rest as it is."""
    return _Unroll(program).run()


class _Unroll:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.types = program.types()
        self.sums: dict[str, Sum] = {table.name: {table.name: ONE} for table in program.tables}
        self.tables = {table.name: table.data for table in program.tables}
        self.parts: dict[str, tuple[tuple[str, ...], int]] = {}
        self.names: dict[str, str] = {}
        self.states = dict[str, None]()
        self.steps = list[Op]()
        self.ops = list[Op]()
        self.last_use = {name: i for i, op in enumerate(program.ops) for name in op.reads()}
        self.last_use |= dict.fromkeys(program.outputs, len(program.ops))
        self.at = 0
        self.count = 0

    def run(self) -> Program:
        for at, op in enumerate(self.program.ops):
            self.at = at
            self._op(op)
        outputs = tuple(self._value(name) for name in self.program.outputs)
        self._flush_steps()
        return _numbered(replace(self.program, ops=tuple(self.ops), outputs=outputs).live())

    def _op(self, op: Op) -> None:
        if op.operator == "step":
            self.steps.append(op)
            for name in _operands(op):
                self.last_use[name] += len(self.program.ops)
            return
        name = op.results[0].name if op.results else ""
        made = self._linear(op)
        if made is not None:
            self.sums[name] = made
        elif not self._structure(op, name):
            self._emit(op)

    # Linear arithmetic

    def _linear(self, op: Op) -> Sum | None:
        """Give the sum that an operation stands for, or None if it is not linear."""
        if op.operator == "linear":
            sums = [self._sum(operand) for operand in op.args]
            terms = [(s, c) for s, c in zip(sums, op.coefficients, strict=False) if s is not None]
            constant = op.coefficients[len(op.args) :]
            complete = len(terms) == len(sums)
            return _added(*terms, ({"": ONE}, constant[0] if constant else Polynomial())) if complete else None
        if not op.operator.startswith("aten.") or (op.results[0].type and not op.results[0].type.is_float):
            return None
        kind = op.operator.split(".")[1]
        if kind in IDENTITIES:
            return self._sum(op.args[0]) if self._keeps(op) else None
        if kind == "copy":
            same = isinstance(op.args[1], Ref) and self.types.get(op.args[1].name) == op.results[0].type
            return self._sum(op.args[1]) if same else None
        if kind in CONSTANTS:
            return _added(({"": ONE}, Polynomial.constant(CONSTANTS[kind])))
        rule = {
            "add": self._add,
            "sub": self._add,
            "rsub": self._add,
            "mul": self._mul,
            "div": self._div,
            "neg": self._neg,
        }
        return rule[kind](op, kind) if kind in rule and not self._is_concat(op) else None

    def _keeps(self, op: Op) -> bool:
        source = op.args[0]
        if not isinstance(source, Ref) or source.name in self.parts:
            return False
        before, after = self.types[source.name], op.results[0].type
        return before is not None and after is not None and before.shape == after.shape and before.is_float

    def _is_concat(self, op: Op) -> bool:
        return any(name in self.parts for name in op.reads())

    def _add(self, op: Op, kind: str) -> Sum | None:
        alpha = op.attr("alpha", op.args[2] if len(op.args) > 2 else 1)
        left, right = self._sum(op.args[0]), self._sum(op.args[1])
        if left is None or right is None or not isinstance(alpha, int | float):
            return None
        signs = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[kind]
        return _added((left, Polynomial.constant(signs[0])), (right, Polynomial.constant(signs[1])))

    def _mul(self, op: Op, _kind: str) -> Sum | None:
        for one, other in (op.args, op.args[::-1]):
            factor, operand = self._scalar(other), self._sum(one)
            if factor is not None and operand is not None:
                return _added((operand, factor))
        return None

    def _div(self, op: Op, _kind: str) -> Sum | None:
        divisor, operand = self._scalar(op.args[1]), self._sum(op.args[0])
        if (
            len(op.args) > 2
            or op.attrs
            or divisor is None
            or operand is None
            or not divisor.is_constant
            or not divisor.terms
        ):
            return None
        return _added((operand, Polynomial.constant(1.0 / divisor({}))))

    def _neg(self, op: Op, _kind: str) -> Sum | None:
        operand = self._sum(op.args[0])
        return None if operand is None else _added((operand, Polynomial.constant(-1.0)))

    def _sum(self, literal: Literal) -> Sum | None:
        if isinstance(literal, Ref):
            type_ = self.types.get(literal.name)
            known = literal.name not in self.parts and (type_ is None or type_.is_float)
            return self.sums.setdefault(literal.name, {literal.name: ONE}) if known else None
        if isinstance(literal, int | float) and not isinstance(literal, bool):
            return {"": Polynomial.constant(literal)}
        return None

    def _scalar(self, literal: Literal) -> Polynomial | None:
        """Give a factor that is the same for all elements and does not change the other operand's shape."""
        if isinstance(literal, Ref) and (data := self.tables.get(literal.name)) is not None:
            same = data.size > 0 and data.ndim <= 4 and np.all(data == data.flat[0]) and data.size == 1
            return Polynomial.constant(float(data.flat[0])) if same else None
        found = self._sum(literal)
        return None if found is None or found.keys() - {""} else found.get("", Polynomial())

    # Concatenations, which linear arithmetic passes through, and splits

    def _structure(self, op: Op, name: str) -> bool:
        """Handle what moves elements but does not compute; False if the operation is none of these."""
        kind = op.operator.split(".")[1] if op.operator.startswith("aten.") else op.operator
        if op.operator in ("aten.cat.default", "concat"):
            return self._concat(op, name)
        if op.operator.startswith("aten.split."):
            return self._split(op)
        if op.operator.startswith("aten.") and kind in ("mul", "div", "neg"):
            return self._scaled_concat(op, name)
        return False

    def _concat(self, op: Op, name: str) -> bool:
        operands = op.args[0] if op.operator.startswith("aten.") else op.args
        axis = op.attr("axis", op.args[1] if op.operator.startswith("aten.") and len(op.args) > 1 else 0)
        if (
            not isinstance(operands, tuple)
            or not isinstance(axis, int)
            or not all(isinstance(o, Ref) for o in operands)
        ):
            return False
        rank = len(type_.shape) if (type_ := op.results[0].type) else 0
        names = [o.name for o in operands if isinstance(o, Ref)]
        known = [operand for operand in map(self.types.get, names) if operand]
        if type_ and any(operand.dtype != type_.dtype for operand in known):
            return False
        parts = tuple(self._value(name) if name in self.parts else name for name in names)
        self.parts[name] = (parts, axis % rank if rank else axis)
        self._keep(parts, name)
        return True

    def _keep(self, parts: Sequence[str], whole: str) -> None:
        """Let parts live as long as the whole."""
        for part in parts:
            self.last_use[part] = max(self.last_use.get(part, -1), self.last_use.get(whole, -1))

    def _scaled_concat(self, op: Op, name: str) -> bool:
        concats = [a for a in op.args if isinstance(a, Ref) and a.name in self.parts]
        if len(concats) != 1 or self.types.get(concats[0].name) != self.types.get(name):
            return False
        parts, axis = self.parts[concats[0].name]
        made: dict[str, str] = {}
        for part in dict.fromkeys(parts):
            scaled = op.renamed({concats[0].name: part})
            result = self._linear(replace(scaled, results=(Value(name, self.types.get(part)),)))
            if result is None:
                return False
            made[part] = f"{name}.{part}"
            self.sums[made[part]], self.types[made[part]] = result, self.types.get(part)
        self.parts[name] = (tuple(made[part] for part in parts), axis)
        self._keep(tuple(made.values()), name)
        return True

    def _split(self, op: Op) -> bool:
        if not isinstance(op.args[0], Ref):
            return False
        sizes = {value.type for value in op.results}
        axis = op.args[2] if len(op.args) > 2 else op.attr("dim", 0)
        if len(sizes) != 1 or not isinstance(axis, int):
            return False
        type_ = op.results[0].type
        self._emit(Op("split", op.args[:1], (("axis", axis % len(type_.shape) if type_ else axis),), (), op.results))
        return True

    # Values

    def _emit(self, op: Op) -> None:
        """Write an operation that is not linear, and before it the values that it reads."""
        names = {name: self._value(name) for name in dict.fromkeys(op.reads()) if name in self.types}
        if op.operator in {graph.name for graph in self.program.graphs}:
            self._shorten()
        self._flush_steps()
        self.ops.append(op.renamed(names))
        if op.operator == "noise":
            self.states[op.results[0].name] = None
        for value in op.results:
            self.sums[value.name] = {value.name: ONE}

    def _shorten(self) -> None:
        for name in [n for n, s in self.sums.items() if len(s) > LONGEST and self.last_use.get(n, -1) > self.at]:
            self._value(name)

    def _flush_steps(self) -> None:
        for op in self.steps:
            for name in _operands(op):
                self.last_use[name] -= len(self.program.ops)
            sums = [self._sum(Ref(name)) or {self._value(name): ONE} for name in _operands(op)]
            rest = op.coefficients[len(sums) :]
            latents = _added(*zip(sums, op.coefficients, strict=False), ({"": ONE}, rest[0] if rest else Polynomial()))
            if not latents.keys() - {""}:
                latents = {self._value(_operands(op)[0]): Polynomial()} | latents
            atoms = [atom for atom in latents if atom]
            constant = [latents[""]] if "" in latents else []
            coefficients = tuple([latents[atom] for atom in atoms] + constant)
            self.ops.append(Op("step", tuple(map(Ref, atoms)), (), coefficients))
        self.steps.clear()

    def _value(self, name: str) -> str:
        """Make sure that a value is computed and give the name under which it stands."""
        if name in self.parts:
            return self._joined(name)
        found = self.sums.get(name)
        if found is None or self._is_atom(name, found):
            return next(iter(found)) if found else name
        self.count += 1
        new = Value(f"{NEW}{self.count}", self.types[name])
        self.types[new.name] = new.type
        self._write(new, name, found)
        return new.name

    def _is_atom(self, name: str, found: Sum) -> bool:
        atom = next(iter(found), "")
        return (
            len(found) == 1 and found.get(atom) == ONE and bool(atom) and self.types.get(atom) == self.types.get(name)
        )

    def _write(self, new: Value, name: str, found: Sum) -> None:
        atoms = [atom for atom in found if atom]
        coefficients = [found[atom] for atom in atoms] + (
            [found.get("", Polynomial())] if "" in found or not atoms else []
        )
        self.ops.append(Op("linear", tuple(map(Ref, atoms)), (), tuple(coefficients), (new,)))
        for other, theirs in self.sums.items():
            if theirs == found and self.types.get(other) == new.type:
                self.sums[other] = {new.name: ONE}
        self.sums[new.name] = self.sums[name] = {new.name: ONE}
        self._replace_state(new, found)
        self.states[new.name] = None

    def _replace_state(self, new: Value, found: Sum) -> None:
        """Express living sums by the new state instead of the oldest one it was made from, if none grows longer."""
        living = {n: s for n, s in self.sums.items() if self.last_use.get(n, -1) >= self.at and n != new.name}
        for old in self.states:
            if old not in found or not found[old].is_constant or self.types.get(old) != new.type:
                continue
            inverse = Polynomial.constant(1.0 / found[old]({}))
            rest = {atom: c for atom, c in found.items() if atom != old}
            replaced = {
                n: _added(
                    ({a: c for a, c in s.items() if a != old}, ONE),
                    ({new.name: ONE}, s[old] * inverse),
                    (rest, s[old] * inverse * Polynomial.constant(-1.0)),
                )
                for n, s in living.items()
                if old in s
            }
            if all(_is_no_worse(s, living[n]) for n, s in replaced.items()):
                self.sums |= replaced
                return

    def _joined(self, name: str) -> str:
        if name not in self.names:
            parts, axis = self.parts[name]
            operands = tuple(Ref(self._value(part)) for part in parts)
            self.ops.append(Op("concat", operands, (("axis", axis),), (), (Value(name, self.types.get(name)),)))
            self.names[name] = name
            self.sums[name] = {name: ONE}
        return self.names[name]


def _operands(op: Op) -> list[str]:
    return [operand.name for operand in op.args if isinstance(operand, Ref)]


def _is_no_worse(new: Sum, old: Sum) -> bool:
    bound = GROWTH * sum(c.size for c in old.values())
    return len(new) <= len(old) and (len(new) == 1 or sum(c.size for c in new.values()) <= bound)


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


def _added(*terms: tuple[Mapping[str, Polynomial], Polynomial]) -> Sum:
    """Add sums times factors, dropping what cancels."""
    total: Sum = {}
    magnitude: dict[str, float] = {}
    for addend, factor in terms:
        for atom, coefficient in addend.items():
            term = coefficient * factor
            total[atom] = total.get(atom, Polynomial()) + term
            magnitude[atom] = magnitude.get(atom, 0.0) + term.size
    return {atom: c for atom, c in total.items() if not c.size <= ROUNDING * magnitude[atom] < math.inf}
