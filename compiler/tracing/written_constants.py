"""Replace constants of a trace by symbolic tensors from the first symbolic value that is written into them.

A tensor that the sampler makes itself, a buffer of zeros for example, is a constant until then. It stays the object
that the sampler holds; what is recorded of it is the symbolic tensor that took its place, and so for its views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.aten import Trait, has
from diffc.compiler.tracing.functionalize import Link, Record
from diffc.compiler.tracing.symbolic_tensor import Symbolic
from diffc.compiler.tracing.text_functions import replaced

READS = ("numpy", "tolist", "__deepcopy__", "__reduce_ex__")
"""Methods that read a tensor's memory without an operator."""


class WrittenConstants:
    """Hold the symbolic tensors that took the places of constants, and the views of constants.

    ``constant`` records a tensor as a value of the program.
    """

    def __init__(self, record: Record, constant: Callable[[torch.Tensor], Symbolic]) -> None:
        self._record, self._constant = record, constant
        self._written = dict[int, tuple[torch.Tensor, Symbolic]]()
        self._views = dict[int, tuple[torch.Tensor, torch.Tensor, Link]]()
        self._memory = list[range]()

    def add_views(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
        """Remember how an operator viewed a constant."""
        if has(func, Trait.VIEW) and isinstance(args[0], torch.Tensor):
            several = isinstance(returned, list | tuple)
            views = returned if several else [returned] if returned is not args[0] else []
            for index, view in enumerate(views):
                self._views[id(view)] = view, args[0], Link(func, tuple(args[1:]), kwargs, index if several else None)

    def present(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the symbolic tensor in the place of a constant that was written, itself or through a view."""
        if id(tensor) in self._written:
            return self._written[id(tensor)][1]
        if not self._memory or isinstance(tensor, Symbolic) or not self._is_written(tensor):
            return tensor
        return self.write(tensor)

    def write(self, tensor: torch.Tensor) -> Symbolic:
        """Put a symbolic tensor in the place of a constant. Raises `CaptureError` for weights and unknown views."""
        if id(tensor) in self._written:
            return self._written[id(tensor)][1]
        if isinstance(tensor, nn.Parameter) or type(tensor) is not torch.Tensor:
            raise CaptureError("a value known only at run time is written into a weight", fix="write into a new tensor")
        if id(tensor) in self._views:
            _, source, link = self._views[id(tensor)]
            symbolic: Symbolic = link.take(self.write(source), self._record)
        elif self._is_written(tensor):
            raise CaptureError("a constant shares its memory with one that is written", fix="clone the tensor first")
        elif not tensor.untyped_storage().resizable():
            what = "a value known only at run time is written into a constant that shares its memory with an array"
            raise CaptureError(what, fix="clone the tensor first")
        else:
            symbolic = self._constant(tensor)
            self._memory.append(_memory(tensor))
        self._written[id(tensor)] = tensor, symbolic
        return symbolic

    @contextmanager
    def read(self) -> Iterator[None]:
        """Replace in this block the methods of tensors that would read what their memory held before a write."""
        with ExitStack() as stack:
            for method in READS:
                stack.enter_context(replaced(torch.Tensor, method, self._reading(method)))
            stack.enter_context(replaced(torch.Tensor, "__dlpack__", _refuse_sharing))
            yield

    def _reading(self, method: str) -> Callable[..., Any]:
        real = getattr(torch.Tensor, method)

        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            present = self.present(tensor)
            return real(tensor, *args, **kwargs) if present is tensor else getattr(present, method)(*args, **kwargs)

        return read

    def _is_written(self, tensor: torch.Tensor) -> bool:
        memory = _memory(tensor)
        return any(max(memory.start, one.start) < min(memory.stop, one.stop) for one in self._memory)


def _refuse_sharing(*_: Any, **__: Any) -> NoReturn:
    raise CaptureError("the memory of a tensor is shared with another library", fix="use a copy, or NumPy's asarray")


def _memory(tensor: torch.Tensor) -> range:
    """Return the addresses of a constant's storage, which several tensors over one array of NumPy share."""
    if type(tensor) is not torch.Tensor or tensor.is_meta:
        return range(0)
    storage = tensor.untyped_storage()
    return range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())
