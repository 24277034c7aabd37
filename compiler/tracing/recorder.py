"""Record the operations of a function on symbolic tensors, as those of a program."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.aten import STRIDELESS, Trait, has
from diffc.compiler.graph.export import type_of
from diffc.compiler.graph.lazy_weights import read
from diffc.compiler.ir.program import NOISE_KINDS, Literal, Op, Polynomial, Ref, Table, Value
from diffc.compiler.tracing.functionalize import RESIZES, Link, become, functional, link, refresh, resized, write
from diffc.compiler.tracing.known_values import known_result, known_rows, read_rows, write_rows
from diffc.compiler.tracing.random_values import FILLED, arguments_of, order_of_axes, random_values
from diffc.compiler.tracing.request_inputs import Image, Tensor
from diffc.compiler.tracing.spawned_seeds import Spawned, need_fresh
from diffc.compiler.tracing.symbolic_tensor import Symbolic, equal
from diffc.compiler.tracing.token_counts import exact, sized_results
from diffc.compiler.tracing.value_ranges import decided, range_of_monotone, range_of_results
from diffc.compiler.tracing.written_constants import WrittenConstants
from diffc.runtime.noise import TERMS

GENERATOR = "generator"
"""The attribute of a noise of one of several generators: the generator's seed."""

DROPPED = ("device", "layout", "memory_format", "pin_memory", "non_blocking", "generator")
"""Arguments of ATen operators for the storage of a tensor, which do not change its values."""

aten = torch.ops.aten
COMPARISONS = [
    getattr(packet, overload)
    for packet in (aten.lt, aten.le, aten.gt, aten.ge, aten.eq, aten.ne)
    for overload in ("Scalar", "Tensor")
]
COMPARED_ELEMENTS = 16
"""Comparisons of constants are noted where they have no more elements: those of scalars have few."""

DECOMPOSED: dict[Any, Callable[..., torch.Tensor]] = {
    aten.lerp.Scalar: lambda start, end, weight: start + (end - start) * weight,
    aten.lerp.Tensor: lambda start, end, weight: start + (end - start) * weight,
    aten.addcmul.default: lambda start, one, two, value=1: start + one * two * value,
    aten.addcdiv.default: lambda start, one, two, value=1: start + one / two * value,
}
"""Operators that are recorded as the arithmetic that they stand for."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record each operation on a symbolic tensor while the mode is on; everything else runs as it always does.

    Noise is drawn without a generator, or with one of the ``seeds``, which the operation then records.
    Raises `CaptureError` at the operation that exceeds the ``limit`` of their number.
    """

    def __init__(self, fake_mode: FakeTensorMode, seeds: Collection[int] = (), limit: float = math.inf) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake_mode, self.seeds, self.limit = fake_mode, seeds, limit
        self.ops, self.tables, self.counts = list[Op](), dict[str, Table](), dict[str, int]()
        self.written = WrittenConstants(self.record, self.constant)
        self.compared = list[list[float]]()
        self.spawned = dict[int, Spawned]()

    def array(self, name: str, item: Image | Tensor) -> Symbolic:
        """Return the symbolic tensor of an input of the request."""
        tensor = Symbolic(self.fake_mode.from_tensor(torch.zeros(item.shape)), name)
        tensor.bounds = (0.0, 1.0) if isinstance(item, Image) else None
        return tensor

    def value(self, fake: torch.Tensor, prefix: str) -> Symbolic:
        """Return a new symbolic tensor, named by a prefix and a number."""
        number = self.counts.get(prefix, 0)
        self.counts[prefix] = number + 1
        return Symbolic(fake, f"{prefix}{number}")

    def constant(self, tensor: torch.Tensor) -> Symbolic:
        """Return a constant as a value of the program."""
        value = self.value(self.fake_mode.from_tensor(tensor), "v")
        if tensor.dim():
            self.append("aten.clone.default", (self.literal(tensor),), (), [value])
        else:
            self.append("aten.full.default", ((), tensor.item()), [("dtype", self.literal(tensor.dtype))], [value])
        return value

    def append(
        self,
        operator: str,
        args: tuple[Literal, ...],
        attrs: Sequence[tuple[str, Literal]],
        results: Sequence[Symbolic],
    ) -> None:
        """Append an operation to the program."""
        if len(self.ops) >= self.limit:
            raise CaptureError(f"the function needs more than {self.limit:,} operations", fix="use a shorter one")
        values = tuple(Value(result.label, type_of(result.fake)) for result in results)
        self.ops.append(Op(operator, args, tuple(attrs), results=values))

    def name(self, tensor: Symbolic) -> str:
        """Return the name under which the present elements of a tensor stand in the program."""
        refresh(tensor, self.record)
        return tensor.label

    def results(self, returned: Any) -> list[str]:
        """Name the tensors that the function returns; those that are constants become values. None where all are."""
        tensors = [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, torch.Tensor)]
        present = [self.written.present(tensor) for tensor in tensors]
        if not any(isinstance(tensor, Symbolic) for tensor in present):
            return []
        return [self.name(t if isinstance(t, Symbolic) else self.constant(t)) for t in present]

    def literal(self, item: Any) -> Literal:
        """Return an argument as it stands in the program; constant tensors become tables."""
        item = self.written.present(item) if isinstance(item, torch.Tensor) else item
        if isinstance(item, Symbolic):
            return Ref(self.name(item))
        if isinstance(item, torch.Tensor):
            return item.item() if item.dim() == 0 else self._table(item)
        if isinstance(item, list | tuple):
            return tuple(self.literal(entry) for entry in item)
        if isinstance(item, torch.dtype):
            return str(item).removeprefix("torch.")
        if item is None or isinstance(item, bool | int | str):
            return exact(item)  # type: ignore[no-any-return]
        return float(item)

    def step(self, latents: Any) -> None:
        """Record that a step of the sampler has ended with these latents."""
        latents = self.written.present(latents) if isinstance(latents, torch.Tensor) else latents
        if isinstance(latents, Symbolic):
            self.ops.append(Op("step", (Ref(self.name(latents)),), (), (Polynomial.constant(1.0),)))

    def record(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Record an operator that writes into nothing, and return its symbolic results."""
        if func is aten.as_strided.default and not args[0].is_contiguous():
            raise CaptureError(f"{func} reads how a tensor lies in memory", fix="use reshape, transpose or an index")
        symbolic = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Symbolic)]
        for operand in symbolic:
            refresh(operand, self.record)
        if func is aten.equal.default and (is_equal := equal(*args)) is not None:
            return is_equal
        known = known_result(func, args, kwargs)
        try:
            returned = self._fake(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            if known is None:
                raise
            return known.answer()
        leaves, structure = pytree.tree_flatten(returned)
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise CaptureError(f"{func} reads the value of a symbolic tensor")
        outcome = decided(func, symbolic[0].bounds, args, leaves[0].shape) if len(leaves) == 1 else None
        if outcome is not None:
            return outcome
        results = [self.value(leaf, "v") for leaf in leaves]
        attrs = [(key, self.literal(value)) for key, value in kwargs.items() if key not in DROPPED]
        self.append(str(STRIDELESS.get(func, func)), tuple(map(self.literal, args)), attrs, results)
        for value, elements in zip(results, known.leaves() if known else (), strict=False):
            value.known = elements
        for value, sized in zip(results, sized_results(func, args, kwargs, len(results)), strict=True):
            value.sized = sized
        _bound(func, args, kwargs, results)
        self._link(func, args, kwargs, results if isinstance(returned, list | tuple) else results[0])
        return pytree.tree_unflatten(results, structure)

    def _link(self, func: Any, args: Any, kwargs: Any, results: Any) -> None:
        """Remember that results are views of the first argument, where they are."""
        if has(func, Trait.VIEW):
            several = isinstance(results, list)
            for index, value in enumerate(results if several else [results]):
                link(value, args[0], Link(func, tuple(args[1:]), kwargs, index if several else None))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(torch.Tensor, self.written.present, (args, kwargs or {}))
        symbolic = any(isinstance(leaf, Symbolic) for leaf in pytree.tree_leaves((args, kwargs)))
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._random(func, args, kwargs)
        if not symbolic:
            returned = func(*args, **kwargs)
            self.written.add_views(func, args, kwargs, returned)
            if func in COMPARISONS and type(returned) is torch.Tensor and returned.numel() <= COMPARED_ELEMENTS:
                self.compared.append((torch.as_tensor(args[0]).double() - args[1]).flatten().tolist())
            return returned
        if func in DECOMPOSED:
            with self:
                return DECOMPOSED[func](*args, **kwargs)
        if func in (aten.index.Tensor, aten.index_put_.default) and (rows := known_rows(*args)) is not None:
            with self:
                return read_rows(args[0], rows) if func is aten.index.Tensor else write_rows(args[0], rows, args[2])
        if func._schema.is_mutable:
            return self._mutate(func, args, kwargs)
        return self.record(func, args, kwargs)

    def _fake(self, func: Any, args: Any, kwargs: Any) -> Any:
        def fake(leaf: Any) -> Any:
            if isinstance(leaf, Symbolic):
                return leaf.fake
            return self.fake_mode.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf

        with self.fake_mode:
            return func(*pytree.tree_map(fake, args), **pytree.tree_map(fake, kwargs))

    def _mutate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Record an in-place operation as the one that returns a new value, which takes the old one's place."""
        pure = functional(func)
        if pure is None or not args:
            raise CaptureError(f"{func} writes in place", fix="use the operation that returns a new tensor")
        destination = args[0]
        target = destination if isinstance(destination, Symbolic) else self.written.write(destination)
        args = (target, *args[1:])
        if func in RESIZES:
            new = resized(target, getattr(args[1], "shape", args[1]), self.record)
        else:
            new = self.record(pure, args, kwargs)
        if torch.Tag.inplace_view in func.tags:
            become(target, new)
            with no_dispatch():  # of the tensor itself, which holds no values, its shape and strides
                func(*args, **kwargs)
        else:
            self._write(destination, new)
        return destination

    def _write(self, destination: Any, new: Any) -> Any:
        """Write values into a tensor, in its type, and return it."""
        target = destination if isinstance(destination, Symbolic) else self.written.write(destination)
        if new.dtype != target.dtype:
            new = self.record(aten._to_copy.default, (new,), {"dtype": target.dtype})
        write(target, new, self.record)
        return destination

    def _random(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Record noise, and what a random operator computes from it."""
        arguments = arguments_of(func, args, kwargs)
        origin = self._origin(func, arguments.get("generator"))

        def noise(like: torch.Tensor, dtype: torch.dtype, **kind: Literal) -> torch.Tensor:
            axes = order_of_axes(like)
            with self.fake_mode:
                value = self.value(torch.empty([like.shape[axis] for axis in axes], dtype=dtype), "n")
            if type_of(value.fake).dtype not in NOISE_KINDS[str(kind.get("kind", "normal"))]:
                raise CaptureError(f"{func} computes noise in {dtype}", fix="compute noise in float32")
            if not kind and not like.is_contiguous() and like.numel() >= FILLED:
                what = f"{func} computes normal noise for a tensor {list(like.shape)} that is not contiguous"
                raise CaptureError(what, fix="compute noise with torch.randn and the tensor's shape")
            if TERMS in origin and kind:
                raise CaptureError(f"{func} computes noise of a spawned seed that is not normal", fix="use torch.randn")
            self.append("noise", (), list((kind | origin).items()), [value])
            return value if like.is_contiguous() else value.permute([axes.index(axis) for axis in range(like.dim())])

        if isinstance(arguments.get("out"), torch.Tensor):
            raise CaptureError(f"{func} writes random values into out", fix="use the operation that returns a tensor")
        is_written = func._schema.is_mutable
        result = args[0] if is_written else self._fake(func, args, kwargs)
        with self:
            values = random_values(func, arguments, result, noise)
        return self._write(args[0], values) if is_written else values

    def _origin(self, func: Any, generator: torch.Generator | None) -> dict[str, Literal]:
        """Return the attributes of noise of a generator, of one of the seeds or of a seed that they spawn."""
        if generator is None:
            return {}
        seed = generator.initial_seed()
        if seed in self.spawned:
            need_fresh(generator)
            return {GENERATOR: self.spawned[seed].mark, **self.spawned[seed].attributes()}
        if seed not in self.seeds:
            raise CaptureError(f"{func} uses a generator of its own", fix="use the request's seed: pass no generator")
        return {GENERATOR: seed}

    def _table(self, tensor: torch.Tensor) -> Ref:
        data = read(tensor).detach().contiguous()
        table = Table.of((data.float() if data.dtype == torch.bfloat16 else data).numpy().copy())
        self.tables.setdefault(table.name, table)
        return Ref(table.name)


def _bound(func: Any, args: Any, kwargs: Any, results: Sequence[Symbolic]) -> None:
    """Note the ranges of results that those of the operands decide."""
    operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    symbolic = [operand for operand in operands if isinstance(operand, Symbolic)]
    for value in results if len(symbolic) == len(operands) else ():
        terms = symbolic[0].fake.numel() // max(1, value.fake.numel())
        value.bounds = range_of_results(func, [operand.bounds for operand in symbolic], value.dtype, terms)
    if len(symbolic) == 1 and len(results) == 1 and results[0].bounds is None:
        results[0].bounds = range_of_monotone(func, args, kwargs, symbolic[0].bounds)
