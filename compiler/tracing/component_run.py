"""Run a component on fake tensors: what it returns, what it computes, and what it leaves behind.

A hook or an attention processor may store a tensor where the pipeline reads it: such a tensor is a result of the call
as well. A tensor that depends on no argument is a cache: it is dropped, and later calls compute it again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.export import one_layout
from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.graph.symbolic import counted_sizes, is_open
from diffc.compiler.tracing.component_state import ComponentState
from diffc.compiler.tracing.random_values import arguments_of
from diffc.compiler.tracing.returned_values import returned_tensors
from diffc.compiler.tracing.state_containers import Place, value_at

COMPARED_ELEMENTS = 256
"""Constants of no more elements are compared by their values, larger ones by their identity."""

COUNTED, FIX = "a size that values of the run decide", "return tensors of fixed sizes, such as padded ones"

DECIDING = (bool, float, str, torch.dtype)
"""The types of constants that are the same for all sizes of an operator's tensors."""

COPIES = (torch.ops.aten.clone.default,)
"""Operators whose result has the values of their operand: PyTorch copies where strides, or sizes of one, ask for it."""

VIEWS = {torch.ops.aten._unsafe_view.default: torch.ops.aten.view.default}
"""Operators that compute what another does, of tensors that a copy has made contiguous."""


@dataclass(frozen=True)
class Computation:
    """Hold the operators of a run with results and operands, and its results: equal where the same is computed."""

    steps: tuple[tuple[Any, ...], ...]
    results: tuple[Any, ...]

    @cached_property
    def structure(self) -> tuple[tuple[Any, ...], ...]:
        """List the operators, the tensors that they read and their other constants, without sizes and integers.

        Copies are left out of a run that writes into no tensor: its tensors have the same values without them.
        """
        copies = () if any(operator._schema.is_mutable for operator, *_ in self.steps) else COPIES
        numbers, lines, count = dict[int, int](), list[tuple[Any, ...]](), itertools.count(1)
        for operator, _, results, *leaves in self.steps:
            read: list[Any] = [numbers.get(leaf, leaf) if type(leaf) is int else leaf for leaf in leaves]
            if operator in copies:
                numbers[results[0]] = read[0]
            elif operator.namespace != "prim":
                numbers |= {result: -next(count) for result in results}
                constants = (leaf for leaf in read if type(leaf) is int or leaf[0] in DECIDING)
                lines.append((VIEWS.get(operator, operator), *constants))
        return tuple(lines)


@dataclass(frozen=True)
class ComponentRun:
    """Hold the results of a run: returned values, places where tensors were stored, and the text of the computation.

    ``changed`` is whether the run has left the component in another state than the one that it found, ``layouts`` are,
    for each of its tensors, the first that is the same, and the strides, on which what is copied depends.
    """

    state: ComponentState
    returned: Any
    stored: tuple[Place, ...]
    computation: Computation
    changed: bool
    layouts: tuple[tuple[int, tuple[int, ...]], ...]


class ComponentRuns:
    """Hold runs of components for several traces: equal calls that change no state share one."""

    def __init__(self) -> None:
        self._states, self._runs = dict[tuple[int, ...], ComponentState](), dict[Hashable, ComponentRun]()

    def state(self, module: nn.Module, *arguments: Any) -> ComponentState:
        """Return the state that a module, and the objects among the arguments of its call, are in."""
        key = tuple(map(id, (module, *arguments)))
        state = self._states.get(key)
        if state is None or not state.holds():
            state = self._states[key] = ComponentState(module, *arguments)
        return state

    def find(self, key: Hashable) -> ComponentRun | None:
        """Return the run of an equal call that has left its component as it was; None where there is none."""
        return self._runs.get(key)

    def run(
        self, key: Hashable, method: Callable[..., Any], arguments: Mapping[str, Any], state: ComponentState
    ) -> ComponentRun:
        """Run a method of a component that is in this state, and keep what later calls of this key may use."""
        run = run_component(method, arguments, state)
        if not run.changed:
            self._runs[key] = run
        return run


def run_component(method: Callable[..., Any], arguments: Mapping[str, Any], state: ComponentState) -> ComponentRun:
    """Run a method of a component that is in this state, on fake arguments.

    Where a value of the run decides a size, such a size is an integer that only a request decides.
    """
    try:
        return _run(method, arguments, state)
    except DynamicOutputShapeException:
        state.undo()
    try:
        with counted_sizes(FAKES):
            run = _run(method, arguments, state)
    except GuardOnDataDependentSymNode as error:
        raise CaptureError(f"a branch depends on {COUNTED}: {error.cond}", fix=FIX) from error
    counted = next((t for t in returned_tensors((run.returned, [value_at(p) for p in run.stored])) if is_open(t)), None)
    if counted is not None:
        raise CaptureError(f"a result {list(counted.shape)} of a component has {COUNTED}", fix=FIX)
    return run


def _run(method: Callable[..., Any], arguments: Mapping[str, Any], state: ComponentState) -> ComponentRun:
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    ids = [*map(id, tensors)]
    recording, layouts = _Recording(tensors), tuple((ids.index(id(tensor)), tensor.stride()) for tensor in tensors)
    with FAKES, torch.no_grad(), one_layout(), _without_caches(), recording:
        returned = method(**arguments)
    stored = _stored(state, recording)
    results = returned_tensors((returned, [value_at(place) for place in stored]))
    return ComponentRun(state, returned, stored, recording.computation(results), not state.is_equal_now(), layouts)


def _drops_nothing(arguments: Mapping[str, Any]) -> bool:
    """Return whether a random operator, such as attention, computes nothing random with these arguments."""
    return arguments.get("train") is False or any(arguments.get(name) == 0.0 for name in ("dropout_p", "dropout"))


@contextmanager
def _without_caches() -> Iterator[None]:
    """Keep functions from caching fake tensors in this block, as they do not cache those of an export."""
    before = torch.compiler._is_exporting_flag
    torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        torch.compiler._is_exporting_flag = before


def _stored(state: ComponentState, recording: _Recording) -> tuple[Place, ...]:
    """List the places that hold tensors computed from the arguments; restore those that hold other new tensors."""
    stored = list[Place]()
    for place in state.changes():
        fakes = [tensor for tensor in returned_tensors(value_at(place)) if type(tensor) is FakeTensor]
        if any(map(recording.depends, fakes)):
            stored.append(place)
        elif fakes:
            state.restore(place[0])
    return tuple(stored)


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record the operators of a run, their constants, and which tensors depend on its inputs."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._steps = list[tuple[Any, ...]]()
        self._reached = list[torch.Tensor](inputs)  # so that no later tensor gets the id of one of them
        self._numbers = {id(tensor): number for number, tensor in enumerate(inputs)}
        self._dependent = set(self._numbers)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and not _drops_nothing(arguments_of(func, args, kwargs)):
            fix = "compute noise in the pipeline, from the request's seed, and hand it to the component"
            raise CaptureError(f"{func} computes random values inside a component", fix=fix)
        leaves, structure = pytree.tree_flatten((args, kwargs))
        operands = [self._token(leaf) for leaf in leaves]
        results = func(*args, **kwargs)
        depends = any(id(leaf) in self._dependent for leaf in leaves)
        tensors = [tensor for tensor in pytree.tree_leaves(results) if isinstance(tensor, torch.Tensor)]
        for tensor in tensors:
            self._number(tensor)
            self._dependent |= {id(tensor)} if depends else set()
        self._steps.append((func, structure, tuple(self._numbers[id(tensor)] for tensor in tensors), *operands))
        return results

    def depends(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is an input or depends on one."""
        return id(tensor) in self._dependent

    def computation(self, results: Sequence[torch.Tensor]) -> Computation:
        """Return the computation of some results."""
        return Computation(tuple(self._steps), tuple(map(self._token, results)))

    def _number(self, tensor: torch.Tensor) -> None:
        self._numbers[id(tensor)] = len(self._reached)
        self._reached.append(tensor)

    def _token(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return type(leaf), str(leaf) if isinstance(leaf, torch.SymInt) else leaf
        if id(leaf) in self._numbers:
            return self._numbers[id(leaf)]
        if isinstance(leaf, FakeTensor | torch.nn.Parameter) or leaf.numel() > COMPARED_ELEMENTS:
            self._reached.append(leaf)
            return id(leaf)
        with _disable_current_modes():
            return leaf.dtype, leaf.shape, tuple(leaf.flatten().tolist())
