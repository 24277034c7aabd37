"""Leave weights in the mapped checkpoint until their values are read, so that a model is never in memory as a whole.

Loading puts lazy weights into the modules: fake tensors of the type that the model computes with, each of which holds
its tensor in the file, perhaps of 16 bits. Capture and export see shapes only. `read` returns the values of a tensor,
`Weight.slices` those of one slice after the other. Both check that values are finite.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from diffc.compiler.errors import LoadError
from diffc.compiler.graph.aten import Trait, has

aten = torch.ops.aten

EAGER_ELEMENTS = 8192
"""Tensors of no more elements than this are read when they are loaded: constants are folded with them."""

SLICE = 4 << 20
"""How many elements are read at a time."""

FAKES = FakeTensorMode(allow_non_fake_inputs=True)
"""The mode of all lazy weights: fake tensors of different modes cannot be operands of one operator."""

PAGEOUT = 21
"""``MADV_PAGEOUT`` of Linux: take pages back now; what was changed is kept."""

NARROW = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Hold a tensor that another tool quantized: its stored parts, and the function that computes float32 values."""

    parts: tuple[torch.Tensor, ...]
    decode: Callable[..., torch.Tensor]

    def values(self) -> torch.Tensor:
        """Compute all values, contiguous in memory, and release the pages of the parts."""
        values = self.decode(*self.parts).contiguous()
        for part in self.parts:
            _release(part)
        return values


@dataclass(frozen=True, eq=False)
class Weight:
    """Hold a tensor as it is stored, and the type of its values; of a checkpoint's, also its name and file.

    The ``source`` of an ``encoded`` weight is a meta tensor, whose layout selects the decoded values.
    """

    source: torch.Tensor
    dtype: torch.dtype
    name: str = ""
    where: str = ""
    encoded: Encoded | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Return a key of the tensor's memory and layout, valid while the weight lives."""
        source = self.source
        start = source.data_ptr() if self.encoded is None else (id(self.encoded), source.storage_offset())
        return start, source.shape, source.stride(), source.dtype

    @property
    def is_stored_so(self) -> bool:
        """Return whether the file holds the values themselves, in the type that the weight stands for."""
        return self.encoded is None and self.source.dtype == self.dtype

    def slices(self, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
        """Yield all values in order, in slices [n] of a type. Raises `LoadError` for values that are not finite."""
        for stored in self._slices():
            yield stored.contiguous().view(-1).to(dtype or self.dtype)

    def read(self) -> torch.Tensor:
        """Return the materialized tensor. A tensor stored in its own type is not copied: do not write into it."""
        if self.is_stored_so:
            for _ in self._slices():
                pass
            return self.source.detach()
        values, at = torch.empty(self.source.shape, dtype=self.dtype), 0
        for part in self.slices():
            values.view(-1)[at : at + len(part)] = part
            at += len(part)
        return values

    def permuted(self, axes: Sequence[int]) -> Weight:
        """Return a view of the stored tensor with its axes in another order."""
        return replace(self, source=self.source.permute(*axes))

    def is_zero(self) -> bool:
        """Return whether all values are zero."""
        return not any(bool(stored.any()) for stored in self._slices())

    def _slices(self) -> Iterator[torch.Tensor]:
        source = self._values()
        rows = source.view(-1) if source.is_contiguous() else source
        size = max(1, SLICE * len(rows) // max(1, rows.numel()))
        for stored in torch.split(rows, size):
            self._check(stored)
            yield stored
            if rows.dim() == 1 and self.encoded is None:
                _release(stored)
        if self.encoded is None:
            _release(source)

    def _values(self) -> torch.Tensor:
        source = self.source.detach()
        if self.encoded is None:
            return source
        return self.encoded.values().as_strided(source.shape, source.stride(), source.storage_offset())

    def _check(self, stored: torch.Tensor) -> None:
        if not self.where or not stored.is_floating_point() or not stored.numel():
            return
        low, high = stored.float().aminmax() if stored.itemsize == 1 else stored.aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            count = int(self._values().isfinite().logical_not().sum())
            what = f"{self.name} has {count} of {self.source.numel()} values that are NaN or infinite"
            fix = "get the checkpoint again, or in a format with a wider range"
            raise LoadError(what, where=self.where, fix=fix)


class LazyWeight(FakeTensor):
    """Replace a weight in a module by its shape and type; ``stored`` reads its values from the file."""

    stored: Weight


def read(tensor: torch.Tensor) -> torch.Tensor:
    """Return the materialized tensor of a lazy weight; any other tensor as it is. Do not write into it."""
    return tensor.stored.read() if isinstance(tensor, LazyWeight) else tensor


def weight_of(tensor: torch.Tensor) -> Weight:
    """Return the description of a lazy weight, or one of a materialized tensor."""
    return tensor.stored if isinstance(tensor, LazyWeight) else Weight(tensor, tensor.dtype)


def release(tensor: torch.Tensor) -> None:
    """Release the memory of a checkpoint's weight until it is read again."""
    if isinstance(tensor, LazyWeight) and tensor.stored.encoded is None:
        _release(tensor.stored.source.detach())


def lazy_weight(weight: Weight) -> LazyWeight:
    """Build a lazy weight with the layout of the stored tensor."""
    with torch.utils._python_dispatch._disable_current_modes():
        source = weight.source
        meta = torch.empty_strided(source.shape, source.stride(), dtype=weight.dtype, device="meta")
        lazy = LazyWeight(FAKES, meta, torch.device("cpu"))
    lazy.stored = weight
    return lazy


def encoded(parts: Sequence[torch.Tensor], decode: Callable[..., torch.Tensor], shape: Sequence[int]) -> LazyWeight:
    """Make a lazy float32 weight of a shape from stored parts and the function that computes its values."""
    source = torch.empty(tuple(shape), dtype=torch.float32, device="meta")
    return lazy_weight(Weight(source, torch.float32, encoded=Encoded(tuple(parts), decode)))


def channels(weight: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Return a lazy weight of some input channels of a weight, without a copy of the stored tensor."""
    stored = weight_of(weight)
    return _like(weight, lazy_weight(replace(stored, source=stored.source[:, first:last])))


class _Postpone(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Postpone conversions to a wider type, and views of their results, until they are read."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first: Any = args[0] if args else None
        if func is aten.copy_.default:
            _refuse_integers(args[1], first.dtype)
        if func is aten._to_copy.default:
            _refuse_integers(first, kwargs.get("dtype") or first.dtype)
        if isinstance(first, LazyWeight):
            if func._schema.is_mutable:
                raise RuntimeError(f"{func} writes into a weight while it is loaded")
            if func is torch.ops.prim.device.default:
                return first.fake_device
            if has(func, Trait.VIEW) or func.namespace == "prim":  # prim asks where a tensor is
                views = func(first.stored.source, *args[1:], **kwargs)
                return pytree.tree_map_only(torch.Tensor, lambda t: lazy_weight(replace(first.stored, source=t)), views)
        if _only_converts(func, first, kwargs):
            return lazy_weight(replace(weight_of(first), dtype=kwargs.get("dtype") or first.dtype))
        args, kwargs = pytree.tree_map_only(LazyWeight, read, (args, kwargs))
        return func(*args, **kwargs)


def _refuse_integers(tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise `LoadError` for stored integers that are to become floating-point values."""
    if isinstance(tensor, LazyWeight) and dtype.is_floating_point and not tensor.is_floating_point():
        weight, stored = tensor.stored, str(tensor.dtype).removeprefix("torch.")
        what = f"{weight.name} is stored as {stored} without a scale, and the model computes with floating-point values"
        fix = "get the model in 16 or 32 bits, or quantized as docs/checkpoints.md lists"
        raise LoadError(what, where=weight.where, fix=fix)


def _only_converts(func: Any, tensor: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether an operator returns the values of a checkpoint's tensor in another type or layout."""
    if func is aten.clone.default:
        return isinstance(tensor, LazyWeight)
    if func is not aten._to_copy.default or str(kwargs.get("device") or "cpu") != "cpu":
        return False
    before, after = tensor.dtype, kwargs.get("dtype") or tensor.dtype
    narrow = tensor.device.type == "cpu" and before in NARROW and tensor.numel() > EAGER_ELEMENTS
    return after == torch.float32 and (narrow or isinstance(tensor, LazyWeight))


@contextmanager
def postponed() -> Iterator[None]:
    """Load in this block without converting: large weights of 16 bits become lazy weights of 32."""
    variable = "HF_DEACTIVATE_ASYNC_LOAD"  # transformers would convert in threads, which no mode reaches
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        with _Postpone():  # type: ignore[no-untyped-call]
            yield
    finally:
        os.environ.pop(variable) if before is None else os.environ.update({variable: before})


def make_lazy(component: str, module: nn.Module, where: str) -> None:
    """Replace a loaded module's large weights by lazy ones; read the small ones, and check them.

    Raises `LoadError` for a value that is not finite, now or when it is read, and where all weights are zero.
    """
    weights = dict[str, Weight]()
    names = {id(t): f"{component}.{key}" for key, t in module.state_dict(keep_vars=True).items()}
    replacements = dict[int, torch.Tensor]()
    for table, key, tensor in _tensors(module):
        if isinstance(tensor, LazyWeight) and not tensor.is_floating_point():
            if isinstance(tensor, nn.Parameter):
                _refuse_integers(tensor, torch.float32)
            table[key] = read(tensor)
        if id(tensor) not in names or not tensor.is_floating_point():
            continue
        if id(tensor) not in replacements:
            weight = replace(weight_of(tensor), name=names[id(tensor)], where=where)
            weights[weight.name] = weight
            replacements[id(tensor)] = _like(
                tensor, lazy_weight(weight) if tensor.numel() > EAGER_ELEMENTS else weight.read()
            )
        table[key] = replacements[id(tensor)]
    small_first = sorted(weights.values(), key=lambda weight: weight.source.numel())
    if small_first and all(weight.is_zero() for weight in small_first):
        fix = "get the checkpoint again: space was reserved for it, but nothing written"
        raise LoadError(f"every weight of {component} is zero", where=where, fix=fix)


def materialize(module: nn.Module) -> None:
    """Replace all lazy weights of a module by tensors in memory, so that it can run."""
    replacements = dict[int, torch.Tensor]()
    for table, key, tensor in _tensors(module):
        if isinstance(tensor, LazyWeight):
            if id(tensor) not in replacements:
                replacements[id(tensor)] = _like(tensor, read(tensor))
            table[key] = replacements[id(tensor)]


def bytes_to_materialize(module: nn.Module) -> int:
    """Compute the memory that `materialize` takes: weights stored in their own type stay in the file."""
    lazy = {id(t): t for _, _, t in _tensors(module) if isinstance(t, LazyWeight) and not t.stored.is_stored_so}
    return sum(tensor.numel() * tensor.itemsize for tensor in lazy.values())


@contextmanager
def materialized(module: nn.Module) -> Iterator[None]:
    """Materialize a module in this block, and make it lazy again at the end."""
    lazy = [(table, key, tensor) for table, key, tensor in _tensors(module) if isinstance(tensor, LazyWeight)]
    materialize(module)
    try:
        yield
    finally:
        for table, key, tensor in lazy:
            table[key] = tensor
        if _TRIM is not None:
            _TRIM(0)


def _tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for key, tensor in list(table.items()):
                if tensor is not None:
                    yield table, key, tensor


def _like(before: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return a parameter if the tensor replaces one."""
    if isinstance(before, nn.Parameter) and isinstance(tensor, LazyWeight):
        tensor._is_param = True
    elif isinstance(before, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    return tensor


def _release(tensor: torch.Tensor) -> None:
    """Release the pages of a mapped file that a tensor lies in, where the system supports it."""
    if _MADVISE is None or not tensor.numel():
        return
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    length = tensor.data_ptr() + (last + 1) * tensor.itemsize - start
    _MADVISE(ctypes.c_void_p(start), ctypes.c_size_t(length), PAGEOUT)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_MADVISE = getattr(_LIBC, "madvise", None)
_TRIM = getattr(_LIBC, "malloc_trim", None)
"""Returns free memory to the system, which glibc keeps between blocks that are in use."""
