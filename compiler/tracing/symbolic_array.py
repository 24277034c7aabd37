"""Represent arrays of NumPy whose elements only the request knows: what NumPy computes with them is recorded.

To every ``isinstance`` they are arrays, of their shape and element type. They hold a tensor, and in the place of
elements objects that nothing can be computed with, so that no function that is not recorded here takes them for values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from diffc.compiler.errors import CaptureError
from diffc.compiler.tracing.symbolic_tensor import Symbolic
from diffc.compiler.tracing.value_ranges import Bounds, Ranged

BOOL = np.dtype(bool)
FIX = "prepare images with Pillow's resize and crop, and with NumPy's arithmetic"


class UnknownElement:
    """Stand for an element that is known only at run time, and refuse to be one that is known now."""

    def _refuse(self, *_: Any) -> Any:
        raise CaptureError("an element of an array that only the request knows is read", fix=FIX)

    __bool__ = __int__ = __float__ = __index__ = __complex__ = __abs__ = __neg__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __round__ = __add__ = __radd__ = __sub__ = __rsub__ = _refuse
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = _refuse


class SymbolicArray(np.ndarray):
    """Hold a tensor and the element type that the array has for NumPy; tensors of numbers are of float32."""

    _values: torch.Tensor | None = None
    _kind: np.dtype[Any]

    def __new__(cls, values: torch.Tensor, kind: Any) -> SymbolicArray:
        hollow = np.broadcast_to(np.array(UnknownElement(), dtype=object), tuple(values.shape)).view(cls)
        hollow._values, hollow._kind = values, np.dtype(kind)
        return hollow

    @property
    def values(self) -> torch.Tensor:
        """Return the tensor. Raises `CaptureError` for what a function that is not recorded has returned."""
        if self._values is None:
            raise CaptureError("a function of NumPy that is not recorded has moved the elements of an image", fix=FIX)
        return self._values

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the element type."""
        return self._kind if self._values is not None else np.dtype(object)

    @property
    def bounds(self) -> Bounds | None:
        """Return the range of the elements, where it is known."""
        values = self.values
        if isinstance(values, Symbolic):
            return values.bounds
        return float(values.min()), float(values.max())

    def tensor(self) -> torch.Tensor:
        """Return the tensor of PyTorch that has the same elements, in their own type."""
        target = torch.from_numpy(np.zeros((), self.dtype)).dtype
        return self.values if self.values.dtype == target else self.values.to(target)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _recorded(func, FUNCTIONS.get(func), args, kwargs)

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "__call__" and ufunc in UFUNCS and not kwargs:
            return _pointwise(ufunc, args)
        rule = REDUCED.get(ufunc) if method == "reduce" else None
        options = {key: value for key, value in kwargs.items() if value is not UNUSED.get(key, UNUSED)}
        return _recorded(ufunc, rule, args, options)

    def astype(self, dtype: Any, *_: Any, **options: Any) -> SymbolicArray:
        """Convert the elements, of a copy but where ``copy`` is false and they have that type."""
        target = np.dtype(dtype)
        if not options.get("copy", True) and target == self.dtype:
            return self
        values = self.copy().values
        if BOOL in (target, self.dtype):
            values = values.to(torch.bool if target == BOOL else torch.float32)
        elif np.issubdtype(target, np.integer) and not np.issubdtype(self.dtype, np.integer):
            values = _within(torch.trunc(values), self.bounds)
        if np.issubdtype(target, np.integer):
            _check_range(_bounds(values), target)
        return SymbolicArray(values, target)

    def __getitem__(self, index: Any) -> SymbolicArray:
        return SymbolicArray(_indexed(self.values, index), self.dtype)

    def __setitem__(self, index: Any, value: Any) -> None:
        bounds, new = self.bounds, _operand(value)
        self.values[_operand(index)] = new
        ends = _bounds(new)
        _within(self.values, (min(bounds[0], ends[0]), max(bounds[1], ends[1])) if bounds and ends else None)

    @property
    def T(self) -> SymbolicArray:  # noqa: N802
        """Return the array with its axes in reverse order."""
        return self.transpose()

    def transpose(self, *axes: Any) -> SymbolicArray:
        """Return the array with its axes in another order."""
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        return SymbolicArray(self.values.permute(*(order or reversed(range(self.ndim)))), self.dtype)

    def reshape(self, *shape: Any, **_: Any) -> SymbolicArray:
        """Return the elements in another shape."""
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return SymbolicArray(self.values.reshape(*map(int, sizes)), self.dtype)

    def squeeze(self, axis: Any = None) -> SymbolicArray:
        """Return the array without an axis of one element, or without all."""
        return SymbolicArray(self.values.squeeze() if axis is None else self.values.squeeze(axis), self.dtype)

    def copy(self, *_: Any) -> SymbolicArray:
        """Return an array that later writes do not change."""
        return SymbolicArray(_within(self.values.clone(), self.bounds), self.dtype)

    def __copy__(self) -> SymbolicArray:
        return self.copy()

    def round(self, decimals: Any = 0, out: Any = None) -> Any:
        """Round to the nearest whole numbers."""
        if decimals or out is not None:
            raise CaptureError("an image is rounded to decimals", fix="round to whole numbers")
        return _pointwise(np.rint, (self,))

    def clip(self, *limits: Any, **named: Any) -> Any:
        """Limit the elements."""
        return _recorded(np.clip, FUNCTIONS[np.clip], (self, *limits), named)

    def item(self, *_: Any) -> Any:
        """Return the range of the one element; refuse where it is not known."""
        if self.bounds is None:
            raise CaptureError("an element of an array that only the request knows is read", fix=FIX)
        return Ranged(self.bounds)

    def tolist(self) -> Any:
        """Refuse: elements are known only at run time."""
        raise CaptureError("elements of an image are read", fix=FIX)

    def tobytes(self, *_: Any, **__: Any) -> bytes:
        """Refuse: elements are known only at run time."""
        raise CaptureError("elements of an image are read", fix=FIX)

    def __bool__(self) -> bool:
        raise CaptureError("a condition depends on elements of an image", fix=FIX)


def array_of(tensor: torch.Tensor, **_: Any) -> SymbolicArray:
    """Return the array of NumPy with the elements of a symbolic tensor."""
    kind = torch.zeros((), dtype=tensor.dtype).numpy().dtype
    is_stored = kind == BOOL or tensor.dtype == torch.float32
    return SymbolicArray(tensor if is_stored else tensor.to(torch.float32), kind)


def tensors_of(results: Any) -> list[Any]:
    """List the results of a function, with tensors in the place of symbolic arrays."""
    leaves = pytree.tree_leaves(results)
    return [leaf.tensor() if isinstance(leaf, SymbolicArray) else leaf for leaf in leaves]


UFUNCS: Mapping[Any, Callable[..., torch.Tensor]] = {
    np.add: torch.add,
    np.subtract: torch.sub,
    np.multiply: torch.mul,
    np.true_divide: torch.true_divide,
    np.negative: torch.neg,
    np.rint: torch.round,
    np.floor: torch.floor,
    np.sqrt: torch.sqrt,
    np.minimum: torch.minimum,
    np.maximum: torch.maximum,
    np.less: torch.lt,
    np.less_equal: torch.le,
    np.greater: torch.gt,
    np.greater_equal: torch.ge,
    np.equal: torch.eq,
}
"""What is computed for each element: it rises or falls with its first operand, and but for quotients with each."""

REDUCED: Mapping[Any, Callable[..., torch.Tensor]] = {
    np.minimum: lambda array, axis=0, keepdims=False: array.amin(() if axis is None else axis, keepdims),
    np.maximum: lambda array, axis=0, keepdims=False: array.amax(() if axis is None else axis, keepdims),
}

UNUSED: Mapping[str, Any] = {"dtype": None, "out": None, "where": True}
"""Options of a reduction, with the values at which they change nothing."""

FUNCTIONS: Mapping[Any, Callable[..., torch.Tensor]] = {
    np.stack: lambda arrays, axis=0: torch.stack(list(arrays), axis),
    np.concatenate: lambda arrays, axis=0: torch.cat(list(arrays), axis),
    np.transpose: lambda array, axes=None: array.permute(*(axes or reversed(range(array.dim())))),
    np.moveaxis: lambda array, source, target: array.movedim(source, target),
    np.swapaxes: lambda array, one, two: array.transpose(one, two),
    np.expand_dims: lambda array, axis: array.unsqueeze(axis),
    np.squeeze: lambda array, axis=None: array.squeeze() if axis is None else array.squeeze(axis),
    np.reshape: lambda array, shape: array.reshape(shape),
    np.broadcast_to: lambda array, shape: array.expand(*shape),
    np.repeat: lambda array, repeats, axis=None: array.repeat_interleave(repeats, axis),
    np.tile: lambda array, reps: array.tile(reps if isinstance(reps, tuple) else (reps,)),
    np.flip: lambda array, axis: array.flip(axis),
    np.clip: lambda array, a_min, a_max: array.clamp(a_min, a_max),
    np.min: lambda array, axis=None: array.amin() if axis is None else array.amin(axis),
    np.max: lambda array, axis=None: array.amax() if axis is None else array.amax(axis),
    np.copy: lambda array: array.clone(),
    np.zeros_like: lambda array, shape=None: array.new_zeros(tuple(array.shape if shape is None else shape)),
}
"""Functions that move, repeat or limit elements: results have the type of the arrays, and their range or 0."""


def _recorded(function: Any, rule: Callable[..., torch.Tensor] | None, args: Any, kwargs: Any) -> SymbolicArray:
    items = (*args, *(args[0] if isinstance(args[0], list | tuple) else ()))
    arrays = [item for item in items if isinstance(item, np.ndarray)]
    if rule is None or not arrays:
        raise CaptureError(f"NumPy's {function.__name__} of an image is not recorded", fix=FIX)
    try:
        values = rule(*map(_operand, args), **{key: _operand(value) for key, value in kwargs.items()})
    except (TypeError, RuntimeError) as error:
        what = f"NumPy's {function.__name__} of an image is not recorded with these arguments: {error}"
        raise CaptureError(what, fix=FIX) from error
    bounds = [_bounds(_operand(array)) for array in arrays]
    known = [ends for ends in bounds if ends is not None]
    if len(known) == len(bounds):
        _within(values, (min(0.0, *(low for low, _ in known)), max(0.0, *(high for _, high in known))))
    limits = [item for item in (*args[1:], *kwargs.values()) if function is np.clip and item is not None]
    return SymbolicArray(values, np.result_type(*(array.dtype for array in arrays), *limits))


def _operand(item: Any) -> Any:
    """Return a tensor for an array, also in a list or tuple; anything else as it is."""
    if isinstance(item, SymbolicArray):
        return item.values
    if isinstance(item, np.ndarray) and item.dtype != object:
        return torch.from_numpy(item if item.dtype == BOOL else item.astype(np.float32))
    if isinstance(item, np.generic):
        return item.item()
    if isinstance(item, list | tuple):
        entries = [_operand(entry) for entry in item]
        return entries if isinstance(item, list) else tuple(entries)
    return item


def _pointwise(ufunc: Any, args: tuple[Any, ...]) -> SymbolicArray:
    """Record what is computed for each element, with the element type that NumPy gives it."""
    kinds = [np.ones((1,) * item.ndim, item.dtype) if isinstance(item, np.ndarray) else item for item in args]
    with np.errstate(all="ignore"):
        kind = ufunc(*kinds).dtype
    operands = [_operand(item) for item in args]
    like = next(item for item in operands if isinstance(item, torch.Tensor))
    needs_tensors = ufunc in (np.minimum, np.maximum)
    operands = [
        torch.full((), float(x), dtype=like.dtype) if needs_tensors and not isinstance(x, torch.Tensor) else x
        for x in operands
    ]
    values = UFUNCS[ufunc](*operands)
    if kind == BOOL:
        return SymbolicArray(values, kind)
    values, bounds = values.to(torch.float32), _range(ufunc, args)
    if np.issubdtype(kind, np.integer):
        _check_range(bounds, kind)
    return SymbolicArray(_within(values, bounds), kind)


def _range(ufunc: Any, args: tuple[Any, ...]) -> Bounds | None:
    """Return the range of what is computed from one array of a known range and from constants."""
    symbolic = [item for item in args if isinstance(item, SymbolicArray)]
    bounds = symbolic[0].bounds if len(symbolic) == 1 else None
    if bounds is None or (ufunc is np.true_divide and args[0] is not symbolic[0]):
        return None
    with np.errstate(all="ignore"):
        ends = [ufunc(*(np.float64(end) if item is symbolic[0] else item for item in args)) for end in bounds]
    low, high = float(np.min(ends)), float(np.max(ends))
    return (low, high) if np.isfinite([low, high]).all() else None


def _bounds(values: Any) -> Bounds | None:
    if isinstance(values, Symbolic):
        return values.bounds
    return (float(torch.as_tensor(values).min()), float(torch.as_tensor(values).max()))


def _within(values: torch.Tensor, bounds: Bounds | None) -> torch.Tensor:
    if isinstance(values, Symbolic):
        values.bounds = bounds
    return values


def _check_range(bounds: Bounds | None, kind: np.dtype[Any]) -> None:
    """Refuse whole numbers that may leave the range of their type: NumPy would wrap them around."""
    limits = np.iinfo(kind)
    if bounds is None or bounds[0] < limits.min or bounds[1] > limits.max:
        raise CaptureError(
            f"whole numbers of an image may leave the range of {kind}", fix="convert it to float32 first"
        )


def _indexed(values: torch.Tensor, index: Any) -> torch.Tensor:
    """Index as NumPy does, where an axis may be read backwards."""
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(_operand(part) for part in parts)
    if any(isinstance(part, slice) and (part.step or 1) < 0 for part in parts):
        return _backwards(values, parts)
    return values[parts]


def _backwards(values: torch.Tensor, parts: tuple[Any, ...]) -> torch.Tensor:
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts = (*parts[:at], *[slice(None)] * (values.dim() - len(parts) + 1), *parts[at + 1 :])
    if any(part not in (slice(None), slice(None, None, -1)) for part in parts):
        raise CaptureError("an axis of an image is read backwards in part", fix="reverse the whole axis")
    return values.flip([axis for axis, part in enumerate(parts) if part.step == -1])
