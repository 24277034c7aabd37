"""A module of operators becomes the exported program that tracing it again would give."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from diffc.compiler.graph.export import export, lift
from diffc.compiler.graph.lazy_weights import LazyWeight, make_lazy
from tests.tolerances import GRAPH


class Model(nn.Module):
    """Use a parameter twice, a buffer, and a tensor that is neither, and give an input back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.wide = nn.Linear(128, 128)
        self.register_buffer("shift", torch.randn(8, 1, 1))
        self.table = torch.randn(16)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute with all of them."""
        hidden = self.norm(self.conv(x)).relu() + self.shift * self.table[time.long()[None]]
        heads = hidden.flatten(2).unflatten(1, (2, 4)).transpose(2, 3)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        one, two = mixed.chunk(2, dim=1)
        other = nn.functional.conv2d(x, self.conv.weight, padding=1)
        return one * two + other.mean(), self.wide(x.flatten(1)[:, :128]), x


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Give what the model takes."""
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)), torch.tensor(3)


@pytest.fixture
def module() -> fx.GraphModule:
    """Capture the model, and take the tensors back into its module."""
    model = Model().requires_grad_(False)
    make_lazy("model", model, "here")
    return export("model", model, example()).module(check_guards=False)


def test_a_lifted_module_computes_the_same_with_the_same_tensors(module: fx.GraphModule) -> None:
    lifted = lift(module, example())
    held = dict([*module.named_parameters(), *module.named_buffers()])
    assert held.keys() == lifted.state_dict.keys() and all(held[name] is lifted.state_dict[name] for name in held)
    assert isinstance(lifted.state_dict["wide.weight"], LazyWeight) and list(lifted.constants) == ["table"]
    whole, wanted = Model(), Model()(*example())
    again = lifted.module(check_guards=False)
    again.load_state_dict(whole.state_dict(), assign=True)
    for found, each in zip(again(*example()), wanted, strict=True):
        assert (found - each).abs().max() <= GRAPH


def test_nodes_and_ports_are_those_of_a_trace(module: fx.GraphModule) -> None:
    lifted, traced = lift(module, example()), torch.export.export(module, example(), strict=False)

    def values(body: torch.export.ExportedProgram) -> list[tuple[object, ...]]:
        made = [(str(node.target), node.meta.get("val")) for node in body.graph.nodes if node.op == "call_function"]
        return [(target, getattr(val, "dtype", 0), tuple(getattr(val, "shape", ()))) for target, val in made]

    def kinds(body: torch.export.ExportedProgram) -> list[tuple[object, str | None]]:
        return sorted((spec.kind.name, spec.target) for spec in body.graph_signature.input_specs if spec.target)

    assert values(lifted) == values(traced)
    assert kinds(lifted) == kinds(traced)


class Dashed(nn.Module):
    """Hold a layer under a name that is none in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"2-1": nn.Linear(2, 2)})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Apply the layer."""
        return (self.layers["2-1"](x),)


def test_a_layer_may_have_a_name_that_is_none_in_python() -> None:
    model, x = Dashed().requires_grad_(False), torch.ones(1, 2)
    lifted = lift(export("model", model, (x,)).module(check_guards=False), (x,))
    assert torch.equal(lifted.module(check_guards=False)(x)[0], model(x)[0])
