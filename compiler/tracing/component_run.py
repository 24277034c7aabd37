"""Run a component on fake tensors: what it returns, what it computes, and what it leaves behind.

A hook or an attention processor may store a tensor where the pipeline reads it: such a tensor is a result of the call
as well. A tensor that depends on no argument is a cache: it is dropped, and later calls compute it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from diffc.compiler.tracing.component_state import ComponentState, Place, value_at
from diffc.compiler.tracing.returned_values import returned_tensors

COMPARED_ELEMENTS = 256
"""Constants of no more elements are compared by their values, larger ones by their identity."""


@dataclass(frozen=True)
class ComponentRun:
    """Hold the results of a run: returned values, places where tensors were stored, and the text of the computation.

    ``changed`` is whether the run has left anything else than it found.
    """

    returned: Any
    stored: tuple[Place, ...]
    computation: tuple[Any, ...]
    changed: bool


def run_component(
    method: Callable[..., Any], arguments: Mapping[str, Any], state: ComponentState, fake_mode: FakeTensorMode
) -> ComponentRun:
    """Run a method of a component that is in this state, on fake arguments."""
    computation = _Computation([leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)])
    with fake_mode, torch.no_grad(), _without_caches(), computation:
        returned = method(**arguments)
    stored = _stored(state, computation)
    results = returned_tensors((returned, [value_at(place) for place in stored]))
    return ComponentRun(returned, stored, computation.text(results), bool(state.changes()))


@contextmanager
def _without_caches() -> Iterator[None]:
    """Keep functions from caching fake tensors in this block, as they do not cache those of an export."""
    before = torch.compiler._is_exporting_flag
    torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        torch.compiler._is_exporting_flag = before


def _stored(state: ComponentState, computation: _Computation) -> tuple[Place, ...]:
    """List the places that hold tensors computed from the arguments; restore those that hold other new tensors."""
    stored = list[Place]()
    for place in state.changes():
        fakes = [tensor for tensor in returned_tensors(value_at(place)) if type(tensor) is FakeTensor]
        if any(map(computation.depends, fakes)):
            stored.append(place)
        elif fakes:
            state.restore(place[0])
    return tuple(stored)


class _Computation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record the operators of a run, their constants, and which tensors depend on its inputs."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tokens = list[Any]()
        self._reached = list[torch.Tensor](inputs)  # so that no later tensor gets the id of one of them
        self._numbers = {id(tensor): number for number, tensor in enumerate(inputs)}
        self._dependent = set(self._numbers)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, structure = pytree.tree_flatten((args, kwargs))
        self._tokens += (func, structure, *map(self._token, leaves))
        results = func(*args, **kwargs)
        depends = any(id(leaf) in self._dependent for leaf in leaves)
        for tensor in pytree.tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self._number(tensor)
                self._dependent |= {id(tensor)} if depends else set()
        return results

    def depends(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is an input or depends on one."""
        return id(tensor) in self._dependent

    def text(self, results: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """Return the computation of some results: equal where it is the same."""
        return (*self._tokens, *map(self._token, results))

    def _number(self, tensor: torch.Tensor) -> None:
        self._numbers[id(tensor)] = len(self._reached)
        self._reached.append(tensor)

    def _token(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return type(leaf), leaf
        if id(leaf) in self._numbers:
            return self._numbers[id(leaf)]
        if isinstance(leaf, FakeTensor | torch.nn.Parameter) or leaf.numel() > COMPARED_ELEMENTS:
            self._reached.append(leaf)
            return id(leaf)
        with _disable_current_modes():
            return leaf.dtype, leaf.shape, tuple(leaf.flatten().tolist())
