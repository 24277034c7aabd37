"""Graphs in 16 bits: what computes in them, what does not, and that the numbers are those of float32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.ir.program import Graph, Value
from diffc.compiler.metrics import sqnr
from diffc.passes.mixed_precision import mixed_precision
from tests.tolerances import BFLOAT16_SQNR, FLOAT16_SQNR

HALVES = {torch.float16: FLOAT16_SQNR, torch.bfloat16: BFLOAT16_SQNR}

each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)

rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


def graph(module: nn.Module, *given: torch.Tensor) -> Graph:
    """Capture a module."""
    body = export("net", module.eval().requires_grad_(False), given)
    inputs = tuple(Value(f"x{at}", type_of(x)) for at, x in enumerate(given))
    return Graph("net", inputs, (Value("y"),), body, "net")


def result(made: Graph, *given: torch.Tensor) -> torch.Tensor:
    """Run a graph."""
    with torch.no_grad():
        found: torch.Tensor = body_of(made)(*given)[0]
    return found


def types(made: Graph) -> Counter[tuple[str, str]]:
    """Count operators by their names and the types of what they give, but for casts."""
    return Counter(
        (node.target.overloadpacket.__name__, str(node.meta["val"].dtype).removeprefix("torch."))
        for node in made.body.graph.nodes
        if isinstance(node.meta.get("val"), torch.Tensor)
        and node.op == "call_function"
        and node.target is not torch.ops.aten._to_copy.default
    )


class Layer(nn.Module):
    """Have a linear layer, to do something with what it gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Mix."""
        return (self.after(self.linear(x)),)

    def after(self, y: torch.Tensor) -> torch.Tensor:
        """Change nothing."""
        return y


class Normed(Layer):
    """Write out a root mean square, as transformers do, in float32."""

    def after(self, y: torch.Tensor) -> torch.Tensor:
        """Let one channel be so large that its square is none of float16."""
        y = y * torch.cat([torch.full((1,), 900.0), torch.ones(15)])
        wide = y.float()
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)


class Timed(Layer):
    """Mix with the sine of a large number, made of a port and constants."""

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor]:  # type: ignore[override]
        """Embed the time."""
        angles = time[:, None].float() * torch.exp(-torch.arange(16.0) / 4)
        return (self.linear(x) * angles.sin() + self.linear(x).exp(),)


class Masked(Layer):
    """Hide what a mask says, with the smallest number of float32, and divide by nearly nothing."""

    def after(self, y: torch.Tensor) -> torch.Tensor:
        """Attend to oneself."""
        mask = torch.full((3, 3), torch.finfo(torch.float32).min).triu(1)
        hidden = (y @ y.T).masked_fill(torch.arange(3) > 1, -1e9) + mask
        return torch.softmax(hidden, -1) @ (y / (y.abs().amax(-1, keepdim=True) * 0 + 1e-12).clamp_min(0.5))


class Large(Layer):
    """Compute with a number that float16 has not, and a weight of such numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factors", torch.linspace(1e5, 2e5, 16))

    def after(self, y: torch.Tensor) -> torch.Tensor:
        """Multiply what is small."""
        return y * 1e-3 * 1e5 + y * 1e-3 * self.factors


KINDS = (Layer, Normed, Masked, Large)


@each_half
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_float32(kind: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    given = graph(kind(), rows)
    made = mixed_precision(given, dtype=dtype)
    assert (made.inputs, made.outputs) == (given.inputs, given.outputs)
    found, wanted = result(made, rows), result(given, rows)
    assert found.dtype == torch.float32
    assert sqnr(found.numpy(), wanted.numpy()) > HALVES[dtype]


@each_half
def test_a_layer_is_of_16_bits_but_for_its_ports(dtype: torch.dtype) -> None:
    made = mixed_precision(graph(Layer(), rows), dtype=dtype)
    assert types(made) == {("linear", str(dtype).removeprefix("torch.")): 1}
    assert made.body.graph_signature.user_outputs and result(made, rows).dtype == torch.float32


def test_a_root_mean_square_is_of_32_bits_from_the_square_to_the_product() -> None:
    made = types(mixed_precision(graph(Normed(), rows), dtype=torch.float16))
    wide = {name for name, dtype in made if dtype == "float32"}
    assert wide == {"pow", "mean", "add", "rsqrt", "mul"} and made["mul", "float32"] == 1
    assert ("linear", "float16") in made and made["mul", "float16"] == 1


def test_what_leads_to_a_sine_is_of_32_bits_and_what_leads_to_an_exponential_from_a_layer_is_not() -> None:
    time = torch.tensor([999.0, 501.0, 3.0])
    given = graph(Timed(), rows, time)
    made = mixed_precision(given, dtype=torch.float16)
    narrow = {name for name, dtype in types(made) if dtype == "float16"}
    assert narrow == {"linear", "mul", "add"}
    found, wanted = result(made, rows, time), result(given, rows, time)
    assert sqnr(found.numpy(), wanted.numpy()) > FLOAT16_SQNR
    angles = (time[:, None].half() * torch.exp(-torch.arange(16.0) / 4).half()).sin()
    exact = (time[:, None] * torch.exp(-torch.arange(16.0) / 4)).sin()
    assert sqnr(angles.numpy(), exact.numpy()) < FLOAT16_SQNR / 1.5, "in float16 it would be wrong"


def test_a_value_is_cast_once_and_no_cast_is_cast() -> None:
    class Twice(Layer):
        def after(self, y: torch.Tensor) -> torch.Tensor:
            y = y.float().to(torch.float32)
            return (y.exp() + y.sin()) * y.half().float() + y.exp() * self.linear(y.exp())

    made = mixed_precision(graph(Twice(), rows), dtype=torch.float16)
    casts = [node for node in made.body.graph.nodes if node.target is torch.ops.aten._to_copy.default]
    keys = [(node.args[0], node.kwargs["dtype"]) for node in casts]
    assert len(set(keys)) == len(keys)
    assert all(node.args[0] not in casts for node in casts)


def test_what_is_named_is_of_32_bits_and_what_reads_a_weight_so_named() -> None:
    given = graph(Normed(), rows)
    body = body_of(given)
    (linear,) = body.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    for name in ("linear", linear.args[1].name):
        assert ("linear", "float32") in types(mixed_precision(given, dtype=torch.float16, wide=(name,)))


def test_numbers_that_only_float32_has_are_computed_in_it_and_infinity_is_not() -> None:
    assert ("mul", "float32") in types(mixed_precision(graph(Large(), rows), dtype=torch.float16))
    assert {dtype for _, dtype in types(mixed_precision(graph(Masked(), rows), dtype=torch.float16))} == {
        "float16",
        "bool",
        "int64",
    }


class Integers(nn.Module):
    """Count."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Add."""
        return (x + 1,)


@pytest.mark.parametrize("x", [torch.arange(3), torch.ones(3, dtype=torch.float64)])
def test_integers_and_float64_are_left_alone(x: torch.Tensor) -> None:
    given = graph(Integers(), x)
    assert mixed_precision(given, dtype=torch.float16) is given


def test_what_a_model_computes_in_float64_stays() -> None:
    class Double(Layer):
        def after(self, y: torch.Tensor) -> torch.Tensor:
            return (y.double() * 1e-7 * 1e7).float() + y

    made = mixed_precision(graph(Double(), rows), dtype=torch.float16)
    assert types(made)["mul", "float64"] == 2
    assert np.isfinite(result(made, rows).numpy()).all()
