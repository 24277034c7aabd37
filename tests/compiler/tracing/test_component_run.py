"""A run says what it computes, and what it leaves behind: results are kept, caches are dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils.torch_utils import lru_cache_unless_export
from torch import nn

from diffc.compiler.graph.lazy_weights import FAKES
from diffc.compiler.tracing.component_run import ComponentRun, run_component
from diffc.compiler.tracing.component_state import ComponentState
from diffc.compiler.tracing.state_containers import value_at


class Net(nn.Module):
    """Compute what a function does to the net and an input."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(3))
        self.memory: Any = None


def run(net: Net) -> ComponentRun:
    """Run the net on fake numbers."""
    x = FAKES.from_tensor(torch.zeros(2, 3))
    return run_component(lambda x: net.function(net, x), {"x": x}, ComponentState(net))


def scaled(factor: float) -> Callable[[Net, torch.Tensor], torch.Tensor]:
    """Return a new function that multiplies the input by the weight and a number."""
    return lambda net, x: x * net.weight * factor


def test_computations_are_equal_where_operators_and_constants_are() -> None:
    net = Net(scaled(2.0))
    first = run(net)
    assert run(net).computation == first.computation and not first.changed
    net.function = lambda net, x: torch.mul(torch.mul(x, net.weight), 2.0)
    assert run(net).computation == first.computation
    for function in (scaled(3.0), lambda net, x: x * 2.0 * net.weight, lambda net, x: x * torch.ones(3) * 2.0):
        net.function = function
        assert run(net).computation != first.computation
    net.function, net.weight = scaled(2.0), nn.Parameter(torch.ones(3))
    assert run(net).computation != first.computation


def test_a_stored_result_is_found() -> None:
    def store(net: Net, x: torch.Tensor) -> torch.Tensor:
        net.memory = {"halves": x.chunk(2)}
        return x + 1

    net = Net(store)
    result = run(net)
    (place,) = result.stored
    assert [half.shape for half in value_at(place)["halves"]] == [(1, 3), (1, 3)] and result.changed


def test_a_cache_is_dropped() -> None:
    def cached(net: Net, x: torch.Tensor) -> torch.Tensor:
        if net.memory is None:
            net.memory = torch.arange(3.0)
        return x + net.memory

    net = Net(cached)
    result = run(net)
    assert not result.stored and not result.changed and net.memory is None
    assert run(net).computation == result.computation


def test_functions_cache_no_fake_tensors() -> None:
    @lru_cache_unless_export()
    def positions(count: int) -> torch.Tensor:
        return torch.arange(count)

    run(Net(lambda net, x: x * positions(3)))
    assert type(positions(3)) is torch.Tensor


def structure(function: Callable[[Net, torch.Tensor], torch.Tensor]) -> tuple[tuple[Any, ...], ...]:
    return run(Net(function)).computation.structure


def test_copies_belong_to_the_structure_of_runs_that_write_only() -> None:
    plain = structure(lambda net, x: x.exp().view(-1) + 1)
    assert structure(lambda net, x: torch.ops.aten._unsafe_view(x.exp().clone(), [-1]) + 1) == plain
    assert structure(lambda net, x: x.sin().view(-1) + 1) != plain
    assert structure(lambda net, x: x.exp().view(-1) + x.view(-1)) != plain

    def write(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        return y.add_(1) * y

    def write_copy(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        return y.clone().add_(1) * y

    assert structure(write) != structure(write_copy)
