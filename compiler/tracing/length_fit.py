"""Find how a program depends on the numbers of tokens of its texts, by comparing traces that assume several.

Sizes and integers that differ must be affine in the numbers, and constant tensors that differ must be the first rows of
one tensor. All else must be equal. Two traces that differ in one number fix a factor; the others check it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Literal, Op, Program, Ref, Table, Type, Value
from diffc.compiler.tracing.component_calls import ComponentCalls, Signature
from diffc.compiler.tracing.open_signatures import OpenCall, Span, localized
from diffc.runtime.program.size import AnySize, Size

FIX = "compute the same for every number of tokens, on tensors whose sizes it decides"


class Misfit(CaptureError):
    """Refuse a program that is no function of the numbers of tokens.

    ``turn`` is the number of tokens of the one text that the last trace changes at which a size stops to be affine.
    """

    def __init__(self, what: str, turn: int | None) -> None:
        super().__init__(what, fix=FIX)
        self.turn = turn


@dataclass(frozen=True)
class LengthTrace:
    """Hold a live program, traced for texts of these numbers of tokens, and its calls of components."""

    counts: Mapping[str, int]
    program: Program
    calls: ComponentCalls


@dataclass(frozen=True)
class Fitted:
    """Hold what one operation of a trace becomes: operations that precede it, and itself.

    ``call`` holds the open sizes of the component that it calls.
    """

    before: tuple[Op, ...]
    op: Op
    call: OpenCall | None


@dataclass
class LengthFit:
    """Compare traces operation by operation. The first is the one that the result has its names from."""

    traces: Sequence[LengthTrace]
    spans: Mapping[str, Span]
    used: set[str] = field(default_factory=set)
    tables: dict[str, Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names: list[dict[str, str]] = [{} for _ in self.traces]
        self.constants = [{table.name: table for table in trace.program.tables} for trace in self.traces]
        self.before, self.signatures = list[Op](), dict[str, Signature]()

    def fit(self) -> list[Fitted]:
        """Return each operation of the first trace as a function of the lengths. Raises `CaptureError`."""
        programs = [trace.program for trace in self.traces]
        fitted = [self._operation(ops) for ops in zip(*(program.ops for program in programs), strict=False)]
        longest = max(programs, key=lambda program: len(program.ops))
        if any(len(program.ops) != len(longest.ops) for program in programs):
            raise self._differs(longest.ops[min(len(program.ops) for program in programs)])
        outputs = [
            [names.get(o, o) for o in program.outputs] for names, program in zip(self.names, programs, strict=True)
        ]
        if any(names != outputs[0] for names in outputs):
            raise self._differs(programs[0].ops[-1])
        return fitted

    def opened(self, fitted: Sequence[Fitted]) -> list[Fitted]:
        """Replace the signatures that the operations call by such of open sizes."""
        calls, names = self.traces[0].calls, dict[tuple[str, str], str]()
        for item in fitted:
            key = item.op.operator, repr(item.call)
            if item.call is not None and key not in names:
                names[key] = calls.opened(self.signatures[item.op.operator], item.call)
        return [
            replace(
                item, op=replace(item.op, operator=names.get((item.op.operator, repr(item.call)), item.op.operator))
            )
            for item in fitted
        ]

    def _operation(self, ops: Sequence[Op]) -> Fitted:
        ops = _with_slices(ops)
        first, self.before = ops[0], []
        shapes = {(len(op.args), tuple(key for key, _ in op.attrs), op.coefficients, len(op.results)) for op in ops}
        operators = {op.operator for op in ops}
        signatures = [trace.calls.signature(op.operator) for trace, op in zip(self.traces, ops, strict=True)]
        called = [signature for signature in signatures if signature is not None]
        if len(shapes) > 1 or len(called) not in (0, len(ops)) or (not called and len(operators) > 1):
            raise self._differs(first)
        if called:
            self.signatures[first.operator] = called[0]
        args = tuple(self._literal(first, column) for column in zip(*(op.args for op in ops), strict=True))
        values = zip(*([value for _, value in op.attrs] for op in ops), strict=True)
        ports = {port.name: port.type for port in called[0].inputs} if called else {}
        attrs = tuple(
            (key, self._port(first, column, ports[key]) if key in ports else self._literal(first, column))
            for (key, _), column in zip(first.attrs, values, strict=True)
        )
        results = self._values(first, [op.results for op in ops])
        call = self._open_call(first, called) if called else None
        return Fitted(tuple(self.before), replace(first, args=args, attrs=attrs, results=results), call)

    def _open_call(self, op: Op, called: Sequence[Signature]) -> OpenCall | None:
        """Return the signature that has the sizes of all these; None where they are the same."""
        first, structure = called[0], called[0].computation.structure
        if any(signature.key[:3] != first.key[:3] for signature in called):
            raise self._differs(op)
        if not all(signature.computes_alike(first) for signature in called):
            raise Misfit(f"the number of tokens of a text decides the state of {first.component}: {op}"[:300], None)
        singles = [signature for signature in called if _is_single(signature, first)]
        if any(signature.computation.structure != structure for signature in singles):
            raise Misfit(f"the number of tokens of a text decides what {first.component} computes: {op}"[:300], None)
        inputs = self._types(op, [signature.inputs for signature in called])
        outputs = self._types(op, [signature.outputs for signature in called])
        leaves = [self._leaf(op, column) for column in zip(*(signature.leaves for signature in called), strict=True)]
        call = localized(inputs, outputs, leaves, self.spans)
        return call if call.lengths else None

    def _leaf(self, op: Op, column: Sequence[Any]) -> Any:
        if all(type(leaf) is int for leaf in column):
            return self.size(op, column)
        if len({repr(leaf) for leaf in column}) > 1:
            raise self._differs(op)
        return column[0]

    def _values(self, op: Op, rows: Sequence[Sequence[Value]]) -> tuple[Value, ...]:
        for names, values in zip(self.names, rows, strict=True):
            names |= {value.name: first.name for value, first in zip(values, rows[0], strict=True)}
        return self._types(op, rows)

    def _types(self, op: Op, rows: Sequence[Sequence[Value]]) -> tuple[Value, ...]:
        """Return values of the first row, with the sizes that all rows have."""
        return tuple(self._value(op, column) for column in zip(*rows, strict=True))

    def _value(self, op: Op, column: Sequence[Value]) -> Value:
        types = [value.type for value in column]
        if len({(type_.dtype, len(type_.shape)) for type_ in types}) > 1:
            raise self._differs(op)
        shape = (self.size(op, sizes) for sizes in zip(*(type_.fixed for type_ in types), strict=True))
        return Value(column[0].name, Type(types[0].dtype, tuple(shape)))

    def _port(self, op: Op, column: Sequence[Literal], port: Type) -> Any:
        """Return an argument of a component: a constant that differs becomes a value of its own."""
        arrays = [self._array(constants, item) for constants, item in zip(self.constants, column, strict=True)]
        known = [array for array in arrays if array is not None]
        if len(known) < len(column) or all(item == column[0] for item in column):
            return self._literal(op, column)
        if len({array.shape for array in known}) > 1:
            return self._table(op, [Table.of(array) for array in known])
        return self._number(op, known, port)

    def _array(self, constants: Mapping[str, Table], item: Literal) -> np.ndarray[Any, Any] | None:
        if isinstance(item, Ref):
            return constants[item.name].data if item.name in constants else None
        return np.asarray(item) if isinstance(item, int | float | tuple) else None

    def _number(self, op: Op, arrays: Sequence[np.ndarray[Any, Any]], port: Type) -> Ref:
        """Append a tensor of a port's type that is filled with the one integer of each of these arrays."""
        if any(array.size == 0 or (array != array.flat[0]).any() or array.flat[0] % 1 for array in arrays):
            raise self._differs(op)
        size = self.size(op, [int(array.flat[0]) for array in arrays])
        result = self._new(op, Type(port.dtype, arrays[0].shape))
        filled = Op("aten.full.default", (arrays[0].shape, size), (("dtype", port.dtype),), results=(result,))
        self.before.append(filled)
        return Ref(result.name)

    def _new(self, op: Op, type_: Type) -> Value:
        """Return a value that precedes an operation."""
        stem = op.results[0].name if op.results else op.operator
        return Value(f"{stem}_{len(self.before)}", type_)

    def _literal(self, op: Op, column: Sequence[Literal]) -> Any:
        first = column[0]
        if all(type(item) is type(first) for item in column):
            if isinstance(first, tuple) and all(len(item) == len(first) for item in column if isinstance(item, tuple)):
                return tuple(self._literal(op, items) for items in zip(*column, strict=True))
            if type(first) is int:
                return self.size(op, column)  # type: ignore[arg-type]
            if isinstance(first, Ref):
                return self._ref(op, column)  # type: ignore[arg-type]
            if all(item == first for item in column):
                return first
        raise self._differs(op)

    def _ref(self, op: Op, column: Sequence[Ref]) -> Ref:
        tables = [constants.get(ref.name) for constants, ref in zip(self.constants, column, strict=True)]
        if all(table is None for table in tables):
            names = {names.get(ref.name, ref.name) for names, ref in zip(self.names, column, strict=True)}
            if len(names) == 1:
                return Ref(names.pop())
        elif all(ref == column[0] for ref in column):
            return column[0]
        elif None not in tables:
            return self._table(op, [table for table in tables if table is not None])
        raise self._differs(op)

    def size(self, op: Op, sizes: Sequence[int]) -> AnySize:
        """Return the affine function of the lengths that has these values in the traces."""
        if len(set(sizes)) == 1:
            return sizes[0]
        base = self.traces[0].counts
        fitted: AnySize = sizes[0]
        for name, count in base.items():
            alone = next((at for at, trace in enumerate(self.traces) if _changed(base, trace.counts) == [name]), None)
            if alone is not None:
                factor, rest = divmod(sizes[alone] - sizes[0], self.traces[alone].counts[name] - count)
                if rest:
                    raise self._differs(op)
                fitted = fitted + factor * (Size.of(name) - count) if factor else fitted
        for trace, size in zip(self.traces, sizes, strict=True):
            if size != (fitted if isinstance(fitted, int) else fitted.at(trace.counts)):
                raise self._differs(op, _turns(fitted, base, trace.counts, size))
        self.used.update(fitted.lengths if isinstance(fitted, Size) else ())
        return fitted

    def _table(self, op: Op, tables: Sequence[Table]) -> Ref:
        """Return the tensor of which those of the traces are the first rows, cut to their number."""
        if len({(table.type.dtype, len(table.type.shape)) for table in tables}) > 1:
            raise self._differs(op)
        shape = [self.size(op, sizes) for sizes in zip(*(table.type.shape for table in tables), strict=True)]
        longest = max((table.data for table in tables if table.data is not None), key=lambda data: data.size)
        arrays = [table.data for table in tables if table.data is not None]
        if not all(np.array_equal(a, longest[tuple(slice(n) for n in a.shape)], equal_nan=True) for a in arrays):
            raise self._differs(op)
        table = Table.of(longest)
        self.tables[table.name] = table
        name, sizes = table.name, list[AnySize](longest.shape)
        for axis, size in enumerate(shape):
            if size != sizes[axis]:
                sizes[axis] = size
                result = self._new(op, Type(table.type.dtype, tuple(sizes)))
                self.before.append(Op("aten.slice.Tensor", (Ref(name), axis, 0, size), results=(result,)))
                name = result.name
        return Ref(name)

    def _differs(self, op: Op, turn: int | None = None) -> Misfit:
        return Misfit(f"the number of tokens of a text decides what is computed: {op}"[:300], turn)


def _is_single(signature: Signature, base: Signature) -> bool:
    """Return whether a size of a call is below two, which an export of open sizes does not see as another branch."""
    pairs = zip(signature.inputs, base.inputs, strict=True)
    return any(n < 2 <= of for one, like in pairs for n, of in zip(one.type.fixed, like.type.fixed, strict=True))


def _turns(fitted: AnySize, base: Mapping[str, int], counts: Mapping[str, int], size: int) -> int | None:
    """Return where an affine size reaches another value, if one length differs from the first trace."""
    factors = dict(fitted.factors) if isinstance(fitted, Size) else {}
    names = _changed(base, counts)
    if not isinstance(fitted, Size) or len(names) != 1 or names[0] not in factors:
        return None
    return counts[names[0]] - (fitted.at(counts) - size) // factors[names[0]]


def _with_slices(ops: Sequence[Op]) -> Sequence[Op]:
    """Write slices that are all of their tensors, which torch leaves out, as those of the other traces."""
    slices = [op for op in ops if op.operator == "aten.slice.Tensor" and len(op.args) == 4]
    if not slices or {op.operator for op in ops} != {"aten.slice.Tensor", "aten.alias.default"}:
        return ops
    _, axis, *_ = slices[0].args
    assert isinstance(axis, int)
    return [
        replace(op, operator="aten.slice.Tensor", args=(*op.args, axis, 0, op.results[0].type.fixed[axis]))
        if op.operator == "aten.alias.default"
        else op
        for op in ops
    ]


def _changed(base: Mapping[str, int], counts: Mapping[str, int]) -> list[str]:
    return [name for name, count in base.items() if counts[name] != count]
