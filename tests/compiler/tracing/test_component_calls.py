"""A component is run once for each way in which it is called; what it returns keeps its structure."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffc.compiler import write_bundle
from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.ir.program import Program, Type
from diffc.compiler.tracing import component_run
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Tensor
from diffc.compiler.tracing.trace import capture, trace
from diffc.runtime import Sampler
from tests.tolerances import PICTURE


class Counted(nn.Module):
    """Add one to rows, or take one away."""

    def forward(self, x: torch.Tensor, flip: bool = False) -> torch.Tensor:
        """Add one, or take one away."""
        return x - 1 if flip else x + 1


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the methods of components that are run; a count in the component would be a state of its own."""
    methods, run = list[str](), component_run.run_component

    def counted(method: Callable[..., Any], *args: Any) -> Any:
        methods.append(method.__name__)
        return run(method, *args)

    monkeypatch.setattr(component_run, "run_component", counted)
    return methods


def call(calls: ComponentCalls, net: nn.Module, *args: Any, **kwargs: Any) -> str:
    """Call a component, and return the name of the graph."""
    return calls.call("net", net, "forward", args, kwargs)[0].name


def test_calls_alike_share_a_graph_however_they_are_written(runs: list[str]) -> None:
    calls, net, x = ComponentCalls(), Counted(), torch.zeros(2, 3)
    names = [call(calls, net, x), call(calls, net, x=torch.ones(2, 3)), call(calls, net, x, flip=True)]
    assert names == ["net", "net", "net_2"] and runs == ["forward"] * 2
    assert call(calls, net, torch.zeros(4, 3)) == "net_3"
    signature = calls.call("net", net, "forward", (x,), {})[0]
    assert [port.type for port in (*signature.inputs, *signature.outputs)] == [Type("float32", (2, 3))] * 2


class Scaled(nn.Module):
    """Multiply by an element of an array."""

    def forward(self, x: torch.Tensor, scales: np.ndarray[Any, Any]) -> torch.Tensor:
        """Return the product."""
        return x * float(scales[1000])


def test_calls_with_arrays_that_print_alike_are_told_apart() -> None:
    calls, net, x, scales = ComponentCalls(), Scaled(), torch.zeros(2, 3), np.zeros((2, 2000))
    scales[1, 1000] = 1
    assert repr(scales[0]) == repr(scales[1])
    assert [call(calls, net, x, scales=row) for row in scales] == ["net", "net_2"]


class Cleared(Counted):
    """Clear a cache after each call: a new list, of equal contents."""

    cache: tuple[Any, ...] | list[Any] = ()

    def forward(self, x: torch.Tensor, flip: bool = False) -> torch.Tensor:
        """Add one, or take one away."""
        self.cache = [None, None]
        return super().forward(x, flip)


def test_a_call_that_leaves_an_equal_state_is_not_run_again(runs: list[str]) -> None:
    calls, net, x = ComponentCalls(), Cleared(), torch.zeros(2, 3)
    assert [call(calls, net, x) for _ in range(4)] == ["net"] * 4
    assert len(runs) == 2, "the first leaves a list where there was a tuple"


def test_traces_share_runs_and_name_their_graphs_alone(runs: list[str]) -> None:
    first, net = ComponentCalls(), Counted()
    second = ComponentCalls(first.runs)
    assert call(first, net, torch.zeros(2, 3)) == "net" and call(first, net, torch.zeros(4, 3)) == "net_2"
    assert call(second, net, torch.zeros(4, 3)) == "net" and len(runs) == 2
    assert [signature.name for signature in second.signatures.values()] == ["net"]


class Parametric(nn.Module):
    """Scale by an attribute of an argument."""

    def forward(self, x: torch.Tensor, options: Any) -> torch.Tensor:
        """Scale."""
        return x * options.scale


def _three_times(net: nn.Module, change: Callable[[float], Any], x: torch.Tensor, **arguments: Any) -> torch.Tensor:
    for value in (1.0, 2.0, 3.0):
        change(value)
        x = net(x, **arguments) + 0.5
    return x


def _program(function: Callable[..., torch.Tensor], net: nn.Module) -> Program:
    calls = ComponentCalls()
    return calls.graphs([trace(lambda x: {"y": function(x)}, {"net": net}, {"x": Tensor((1, 2))}, calls=calls)])[0]


def test_an_argument_that_changes_between_calls_is_another() -> None:
    options, net, x = SimpleNamespace(scale=1.0), Parametric(), torch.rand(1, 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        return _three_times(net, lambda value: setattr(options, "scale", value), x, options=options)

    program = _program(run, net)
    assert len(program.graphs) == 3
    assert torch.equal(evaluate(program, {"x": x})[0], run(x))


class Random(nn.Module):
    """Scale by a number that no attribute holds."""

    def __init__(self) -> None:
        super().__init__()
        self.source = random.Random(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale."""
        return x * self.source.random()


def test_a_component_that_computes_something_else_in_the_same_state_is_refused() -> None:
    net = Random()
    with pytest.raises(CaptureError, match="net computes something else when it is called again in the same state"):
        _program(lambda x: _three_times(net, lambda _: None, x), net)


def test_a_call_with_half_of_the_batch_is_part_of_the_other() -> None:
    calls, net = ComponentCalls(), Counted()
    for rows in (4, 2, 3):
        call(calls, net, torch.zeros(rows, 3))
    assert calls.parts() == {"net": "net_2"}


def test_a_component_that_does_not_fit_is_named() -> None:
    with pytest.raises(CaptureError, match="net does not fit"):
        call(ComponentCalls(), nn.Linear(3, 3), torch.zeros(2, 5))


class Half:
    """Halve, and store the result as attention processors do."""

    stored: Any = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Halve."""
        self.stored = x / 2
        return self.stored


class Processed(nn.Module):
    """Compute with a processor that a sampler exchanges."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.processor: Callable[[torch.Tensor], torch.Tensor] = torch.neg

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Process the layer's output."""
        return self.processor(self.inner(x))


def perturbed(net: Processed) -> torch.Tensor:
    """Sample with a component that changes during the call, and is at the end as it was."""
    x = net(torch.randn(1, 3))
    before, net.processor = net.processor, Half()
    sizes: dict[str, Any] = {}
    with net.inner.register_forward_hook(lambda module, args, output: sizes.update(shape=output.shape, out=output)):
        for _ in range(2):
            x = net(x) + net.processor.stored
    net.processor = before
    return x * sizes["shape"][-1] + sizes["out"] + net(x)


def test_a_component_is_what_it_was_when_it_was_called(tmp_path: Path) -> None:
    net = Processed()
    program = capture(lambda: perturbed(net), {"net": net})
    assert [op.operator for op in program.ops if op.operator.startswith("net")] == ["net", "net_2", "net_2", "net"]
    sampled = Sampler(write_bundle(program, tmp_path / "x.diffc"))(seed=0, output="np")
    torch.manual_seed(0)
    with torch.no_grad():
        assert np.abs(np.asarray(sampled) - perturbed(net).numpy()).max() <= PICTURE


def test_a_weight_that_is_written_during_the_call_is_refused() -> None:
    net = nn.Linear(3, 3)

    def sampler() -> torch.Tensor:
        x = net(torch.randn(2, 3))
        net.weight.mul_(2.0)
        return net(x)

    with pytest.raises(CaptureError, match="the weights of net, or what its methods read, changed after its call"):
        capture(sampler, {"net": net})


def test_a_method_of_the_object_is_the_one_that_is_called() -> None:
    net = nn.Linear(3, 3)
    net.forward = lambda input: input + 1  # type: ignore[method-assign]
    program = capture(lambda: net(torch.randn(2, 3)), {"net": net})
    nodes = body_of(program.graphs[0]).graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
    assert len(nodes) == 1


def test_a_component_that_remembers_its_last_call_is_refused() -> None:
    class Recurrent(nn.Module):
        memory: Any = 0.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.memory = x + self.memory
            return x * 2

    net = Recurrent()
    with pytest.raises(CaptureError, match="symbolic value"):
        capture(lambda: net(net(torch.randn(2, 3))), {"net": net})


class Flat(nn.Module):
    """Copy rows that do not lie one after the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Flatten."""
        return 2 * x.reshape(-1)


def test_a_repeated_call_has_arguments_of_the_same_layout() -> None:
    net, x = Flat(), torch.rand(1, 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        return net(torch.cat([x, x + 1]).t())

    assert torch.equal(evaluate(_program(run, net), {"x": x})[0], run(x))


class Dropping(nn.Module):
    """Compute random values in ways that no attribute shows, or attend without any."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute."""
        if self.how == "dropout":
            return F.dropout(x, 0.5, True)
        if self.how == "noise":
            return x + torch.randn(2)
        return F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None])[0, 0]


@pytest.mark.parametrize("how", ["dropout", "noise"])
def test_random_values_inside_of_a_component_are_refused(how: str) -> None:
    net = Dropping(how)
    with pytest.raises(CaptureError, match=r"aten\.\w+\.\w+ computes random values inside a component"):
        _program(lambda x: net(x), net)


def test_attention_that_drops_nothing_is_not_random() -> None:
    net, x = Dropping("attention"), torch.rand(1, 2)
    torch.testing.assert_close(evaluate(_program(lambda x: net(x), net), {"x": x})[0], net(x))
