"""Guide only the steps inside an interval; the others run the denoiser on the part of the batch that is left.

Source: Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
        Diffusion Models", NeurIPS 2024, https://arxiv.org/abs/2404.07724, in fractions of the steps, as diffusers'
        guiders state it

Outside the interval the guidance scale is 1 wherever it weighs an output of that step's call. Which branch is left then
follows from the coefficients. The call of the whole batch becomes calls of its parts, and those without a reader go.

Before:
    n = noise()
    a = concat(n, n, axis=0)
    h = concat(negative, positive, axis=0)
    y0 = unet(sample=a, timestep=999, encoder_hidden_states=h)
    u, c = split(y0, axis=0)
    x0 = linear(n, u, c; 2.0, 0.5 + -0.5*guidance_scale, 0.5*guidance_scale)
    step(x0; 1.0)
    b = concat(x0, x0, axis=0)
    y1 = unet(sample=b, timestep=499, encoder_hidden_states=h)
    v, d = split(y1, axis=0)
    x1 = linear(x0, v, d; 2.0, 0.5 + -0.5*guidance_scale, 0.5*guidance_scale)
    step(x1; 1.0)

After (interval=(0.5, 1.0), parts={"unet": Graph("unet_2", (), ())}):
    n = noise()
    h = concat(negative, positive, axis=0)
    unet_2_1 = unet_2(sample=n, timestep=999, encoder_hidden_states=positive)
    x0 = linear(n, unet_2_1; 2.0, 0.5)
    step(x0; 1.0)
    b = concat(x0, x0, axis=0)
    y1 = unet(sample=b, timestep=499, encoder_hidden_states=h)
    v, d = split(y1, axis=0)
    x1 = linear(x0, v, d; 2.0, 0.5 + -0.5*guidance_scale, 0.5*guidance_scale)
    step(x1; 1.0)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count

from diffc.compiler.analysis.linear_form import ROUNDING
from diffc.compiler.errors import PassError
from diffc.compiler.ir.program import BUILTINS, UNTYPED, Graph, Literal, Op, Polynomial, Program, Ref, Type, Value


def guidance_interval(
    program: Program, *, interval: tuple[float, float], parts: Mapping[str, Graph] | None = None
) -> Program:
    """Switch guidance off where not ``int(start * n) <= step < int(stop * n)``, for the n steps that are marked.

    ``parts`` names, for each graph of a whole batch, the same component's graph for a part of it: without it only
    guidance by calls of its own becomes cheaper. Raises `PassError` where a step outside would still need every part.
    """
    steps = sum(op.operator == "step" for op in program.ops)
    if not steps:
        fix = "leave the interval out: the pipeline does not report the ends of steps"
        raise PassError("guidance_interval: the program marks no steps", where=program.name, fix=fix)
    legal = 0 <= interval[0] <= interval[1] <= 1
    guided = range(int(interval[0] * steps), int(interval[1] * steps)) if legal else range(0)
    if len(guided) in (0, steps):
        what = f"guidance_interval: {len(guided)} of {steps} steps are inside {interval[0]:g},{interval[1]:g}"
        raise PassError(what, where=program.name, fix="give fractions of the steps, such as 0.2,0.8")
    return _Switch(program, {*range(steps)}.difference(guided), parts or {}).run()


class _Switch:
    def __init__(self, program: Program, outside: set[int], parts: Mapping[str, Graph]) -> None:
        self.program, self.outside, self.parts = program, outside, parts
        self.types = program.types()
        self.producers = {value.name: op for op in program.ops for value in op.results}
        self.ops = list[Op]()
        self.step = 0
        self.unguided = set[str]()
        self.calls = list[tuple[int, Op]]()
        self.slices: dict[tuple[str, int], str] = {}
        self.names: dict[str, str] = {}

    def run(self) -> Program:
        for op in self.program.ops:
            self._op(op.renamed(self.names))
        graphs = {graph.name: graph for graph in (*self.program.graphs, *self.parts.values())}
        outputs = tuple(self.names.get(name, name) for name in self.program.outputs)
        changed = replace(self.program, graphs=tuple(graphs.values()), ops=tuple(self.ops), outputs=outputs).live()
        self._check(changed)
        return changed

    def _op(self, op: Op) -> None:
        if op.operator in ("linear", "step"):
            self.ops.append(self._at_one(op))
            self.step += op.operator == "step"
        elif op.operator not in BUILTINS and not op.operator.startswith("aten."):
            self._call(op)
        elif not self._joins(op):
            self.ops.append(op)
            if self.unguided.intersection(op.reads()):
                self.unguided.update(value.name for value in op.results)

    def _at_one(self, op: Op) -> Op:
        """Set the scalars to 1 in the coefficients of values from outside the interval."""
        names = [*op.reads()][: len(op.args)]
        terms = [(n, _one(c) if n in self.unguided else c) for n, c in zip(names, op.coefficients, strict=False)]
        constant = op.coefficients[len(names) :]
        nonzero = [(name, coefficient) for name, coefficient in terms if coefficient.terms]
        if not nonzero:
            nonzero, constant = (terms[:1], constant) if op.operator == "step" else ([], constant or (Polynomial(),))
        if self.unguided.issuperset(names) and all(c.is_constant for c in op.coefficients):
            self.unguided.update(value.name for value in op.results)
        return replace(op, args=tuple(Ref(n) for n, _ in nonzero), coefficients=(*(c for _, c in nonzero), *constant))

    # Calls outside the interval

    def _call(self, op: Op) -> None:
        self.ops.append(op)
        if self.step not in self.outside:
            return
        self.unguided.update(value.name for value in op.results)
        part, number = self.parts.get(op.operator), self._count(op)
        if part is None or number < 2:
            self.calls.append((self.step, op))
            return
        for at in range(number):
            self._call_part(op, part, at, number)

    def _call_part(self, op: Op, part: Graph, at: int, number: int) -> None:
        arguments = tuple((name, self._part(part, name, literal, at, number)) for name, literal in op.attrs)
        types = [port.type for port in part.outputs] or [UNTYPED] * len(op.results)
        results = [self._new(part.name, type_) for type_ in types]
        self.slices |= {(batch.name, at): mine.name for batch, mine in zip(op.results, results, strict=True)}
        self.unguided.update(value.name for value in results)
        self.ops.append(Op(part.name, (), arguments, (), tuple(results)))
        self.calls.append((self.step, self.ops[-1]))

    def _count(self, op: Op) -> int:
        """Count the parts that the batch of a call is concatenated from."""
        concats = [self.producers[name] for name in op.reads() if name in self.producers]
        return max((len(c.args) for c in concats if c.operator == "concat" and c.attr("axis") == 0), default=0)

    def _new(self, stem: str, type_: Type) -> Value:
        name = next(name for i in count() if (name := f"{stem}_{i}") not in self.types)
        self.types[name] = type_
        return Value(name, type_)

    def _joins(self, op: Op) -> bool:
        """Map the results of a split to those of the calls of its parts; return whether all correspond."""
        batch, number = next(op.reads(), ""), len(op.results)
        if op.operator != "split" or op.attr("axis") != 0 or (batch, number - 1) not in self.slices:
            return False
        self.names |= {value.name: self.slices[batch, at] for at, value in enumerate(op.results)}
        return (batch, number) not in self.slices

    def _part(self, graph: Graph, port: str, literal: Literal, at: int, number: int) -> Literal:
        """Return one part of an argument; an argument without a batch is the same for all."""
        type_ = next((value.type for value in graph.inputs if value.name == port), UNTYPED)
        if isinstance(literal, tuple) and type_.shape and len(literal) > type_.fixed[0]:
            return literal[at * type_.fixed[0] : (at + 1) * type_.fixed[0]]
        return Ref(self._slice(literal.name, type_, at, number)) if isinstance(literal, Ref) else literal

    def _slice(self, name: str, type_: Type, at: int, number: int) -> str:
        """Name a part of a value; split the value where no operation computes its parts."""
        op = self.producers.get(name)
        if (name, at) in self.slices:
            return self.slices[name, at]
        if op and op.operator == "concat" and op.attr("axis") == 0 and len(op.args) == number:
            return self.names.get([*op.reads()][at], [*op.reads()][at])
        if UNTYPED != type_ == self.types.get(name):
            return name
        results = tuple(self._new(f"{name}_part", type_) for _ in range(number))
        self.slices |= {(name, part): value.name for part, value in enumerate(results)}
        self.ops.append(Op("split", (Ref(name),), (("axis", 0),), (), results))
        return results[at].name

    def _check(self, changed: Program) -> None:
        """Check that every step outside the interval lost a call, and that none runs its whole batch still."""
        alive = {value.name for op in changed.ops for value in op.results}
        lost = {step for step, op in self.calls if alive.isdisjoint(value.name for value in op.results)}
        batched = [op for op in self.ops if any((v.name, 0) in self.slices and v.name in alive for v in op.results)]
        batched = [op for op in batched if op.operator in self.parts]
        needed = batched + [op for step, op in self.calls if step not in lost]
        if needed:
            what = "guidance_interval: a step outside the interval needs all that its guidance would"
            fix = "leave the interval out: this guidance cannot be switched off for single steps"
            raise PassError(what, where=str(needed[-1]), fix=fix)


def _one(coefficient: Polynomial) -> Polynomial:
    """Evaluate at 1, and set a coefficient that vanishes there but for rounding to 0."""
    total = sum(factor for _, factor in coefficient.terms)
    return Polynomial.constant(total if abs(total) > ROUNDING * coefficient.size else 0.0)
