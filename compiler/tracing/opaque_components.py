"""Record calls of a pipeline's components as operations, and run none of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Literal
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.component_state import ENTRY_POINTS
from diffc.compiler.tracing.recorder import Recorder
from diffc.compiler.tracing.returned_values import returned_tensors, with_tensors
from diffc.compiler.tracing.state_containers import put
from diffc.compiler.tracing.symbolic_tensor import Symbolic

REPLACED = (*ENTRY_POINTS, "to")

INLINE = 16
"""Constant vectors of no more elements than this stand in a call; others become tables."""


class OpaqueComponents:
    """Replace the methods of components by such that record their calls."""

    def __init__(self, recorder: Recorder, calls: ComponentCalls, components: Mapping[str, nn.Module]) -> None:
        self.recorder, self.calls, self.components = recorder, calls, components
        modules = {id(module): module for module in components.values()}.values()
        self._own = [(module, _own_methods(module)) for module in modules]

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the calls of all components in this block."""
        with ExitStack() as stack:
            for name, module in self.components.items():
                methods = [method for method in ENTRY_POINTS if callable(getattr(type(module), method, None))]
                recording = {method: self._recording(name, module, method) for method in methods}
                stack.enter_context(_with_methods(module, recording | {"to": _stays(name, module)}))
            yield

    def _recording(self, name: str, module: nn.Module, method: str) -> Callable[..., Any]:
        @functools.wraps(getattr(type(module), method).__get__(module))  # pipelines ask which arguments it takes
        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = pytree.tree_map_only(torch.Tensor, self.recorder.written.present, (args, kwargs))
            with _disable_current_modes(), self._transparent():
                signature, tensors, places = self.calls.call(name, module, method, args, kwargs)
            prefix = f"{signature.name}_" if signature.name[-1].isdigit() else signature.name  # its values are numbered
            results = [self.recorder.value(leaf, prefix) for leaf in returned_tensors(signature.returned)]
            attrs = [(port.name, self._port(t)) for port, t in zip(signature.inputs, tensors, strict=True)]
            self.recorder.append(signature.name, (), attrs, results)
            returned, stored = with_tensors(signature.returned, iter(results))
            for place, value in zip(places, stored, strict=True):
                put(place, value)
            return returned

        return call

    def _port(self, tensor: torch.Tensor) -> Literal:
        if not isinstance(tensor, Symbolic) and tensor.dim() == 1 and tensor.numel() <= INLINE:
            return tuple(tensor.tolist())
        return self.recorder.literal(tensor)

    @contextmanager
    def _transparent(self) -> Iterator[None]:
        """Run the components' own methods in this block: they may call each other."""
        recording = [(module, _own_methods(module)) for module, _ in self._own]
        try:
            _set_methods(self._own)
            yield
        finally:
            _set_methods(recording)


def _own_methods(module: nn.Module) -> dict[str, Any]:
    """Return the methods that are attributes of a module and hide those of its class."""
    return {method: module.__dict__[method] for method in REPLACED if method in module.__dict__}


def _set_methods(methods: Iterable[tuple[nn.Module, Mapping[str, Any]]]) -> None:
    for module, own in methods:
        for method in REPLACED:
            module.__dict__.pop(method, None)
        module.__dict__.update(own)


@contextmanager
def _with_methods(module: nn.Module, methods: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    before = {name: module.__dict__[name] for name in methods if name in module.__dict__}
    module.__dict__.update(methods)
    try:
        yield
    finally:
        for name in methods:
            del module.__dict__[name]
        module.__dict__.update(before)


def _stays(name: str, module: nn.Module) -> Callable[..., nn.Module]:
    """Return a ``to`` that moves a component nowhere, and refuses to convert it."""

    def to(*args: Any, **kwargs: Any) -> nn.Module:
        _, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None and any(p.dtype != dtype for p in module.parameters() if p.is_floating_point()):
            raise CaptureError(f"the pipeline casts {name} to {dtype}", fix="use a pipeline that computes in float32")
        return module

    return to
