"""Each distinct call of a component becomes one graph, with the ports that it has and the outputs that are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.export import LAYER, export, type_of
from diffc.compiler.ir.program import Graph, Program, Type
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.trace import capture, trace
from diffc.passes.mixed_precision import mixed_precision
from diffc.runtime.program.verify import verify
from tests.random_programs import difference, draws, numbers


class Three(nn.Module):
    """Return three tensors, the last of which is costly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.costly = nn.Linear(3, 1000)

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute three things."""
        return sample + 1, sample * 2, self.costly(sample)


class Keywords(nn.Module):
    """Take what diffusers' models take: keywords, nested dictionaries, lists and flags."""

    def forward(
        self,
        sample: torch.Tensor,
        added: dict[str, torch.Tensor] | None = None,
        residuals: list[torch.Tensor] | None = None,
        scale: float = 1.0,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Add up what is given."""
        total = sample * scale
        for tensor in (*(added or {}).values(), *(residuals or []), *kwargs.values()):
            total = total + tensor
        return total


def ports(program: Program, graph: int = 0) -> list[str]:
    """List a graph's inputs."""
    return [port.name for port in program.graphs[graph].inputs]


def test_outputs_that_nobody_reads_are_not_computed() -> None:
    three = Three()
    program = verify(capture(lambda: three(torch.randn(2, 3))[1], {"three": three}))
    (graph,) = program.graphs
    assert [port.name for port in graph.outputs] == ["out_1"]
    assert len(program.ops[1].results) == 1
    nodes = [str(node.target) for node in graph.body.graph.nodes]
    assert "aten.mul.Tensor" in nodes and not any("linear" in node for node in nodes)
    assert difference(numbers(program, draws(program)), [2 * draws(program)[0]]) == 0.0


def test_an_output_that_one_call_reads_is_computed_for_all() -> None:
    three = Three()

    def sample() -> torch.Tensor:
        first, _, _ = three(torch.randn(2, 3))
        _, second, _ = three(first)
        return second

    program = verify(capture(sample, {"three": three}))
    assert [port.name for port in program.graphs[0].outputs] == ["out", "out_1"]
    assert difference(numbers(program, draws(program)), [2 * (draws(program)[0] + 1)]) == 0.0


def test_conversions_are_spelled_alike_and_only_where_they_convert() -> None:
    class Converts(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            same = nn.functional.dropout(x.to("cpu", torch.float32).to(torch.float32), training=False)
            return same.to(torch.float64).exp().type_as(x), x.float()

    body = export("model", Converts(), (torch.zeros(2, 3),))
    kinds = [str(node.target) for node in body.graph.nodes if node.op == "call_function"]
    assert kinds == ["aten._to_copy.default", "aten.exp.default", "aten._to_copy.default", "aten._to_copy.default"]
    found, x = body.module()(torch.ones(2, 3)), torch.ones(2, 3)
    assert [tensor.dtype for tensor in found] == [torch.float32] * 2
    assert torch.equal(found[0], x.double().exp().float()) and torch.equal(found[1], x)


def test_calls_alike_share_a_graph() -> None:
    three = Three()
    program = capture(lambda: three(three(torch.randn(2, 3))[0])[0], {"three": three})
    assert [graph.name for graph in program.graphs] == ["three"]
    assert program.graphs[0].component == "three"


def test_another_shape_is_another_graph() -> None:
    three = Three()
    program = verify(capture(lambda: (three(torch.randn(2, 3))[0], three(torch.randn(4, 3))[0]), {"three": three}))
    assert [graph.name for graph in program.graphs] == ["three", "three_2"]
    assert [graph.component for graph in program.graphs] == ["three", "three"]
    assert [graph.inputs[0].type for graph in program.graphs] == [Type("float32", (n, 3)) for n in (2, 4)]


def test_another_flag_is_another_graph() -> None:
    module = Keywords()
    program = capture(lambda: module(torch.randn(2), scale=2.0) + module(torch.randn(2)), {"module": module})
    assert [graph.name for graph in program.graphs] == ["module", "module_2"]


def test_programs_share_graphs() -> None:
    three, calls = Three(), ComponentCalls()
    programs = [trace(lambda i=i: three(torch.randn(2, 3))[i], {"three": three}, {}, calls=calls) for i in range(2)]
    first, second = calls.graphs(programs)
    assert first.graphs[0] is second.graphs[0]
    assert len(first.graphs[0].outputs) == 2


def test_ports_are_named_by_the_way_to_them() -> None:
    module = Keywords()

    def sample() -> torch.Tensor:
        x = torch.randn(2)
        return module(x, {"text_embeds": x + 1, "time_ids": x + 2}, residuals=[x + 3, x + 4], extra=x + 5)

    program = verify(capture(sample, {"module": module}))
    assert sorted(ports(program)) == sorted(
        ["sample", "added_text_embeds", "added_time_ids", "residuals_0", "residuals_1", "extra"]
    )
    assert difference(numbers(program, draws(program)), [draws(program)[0] * 6 + 15]) < 1e-6


def test_positions_and_keywords_are_the_same_call() -> None:
    module = Keywords()

    def sample() -> torch.Tensor:
        x = torch.randn(2)
        return module(x, {"a": x}) + module(added={"a": x}, sample=x)

    assert len(capture(sample, {"module": module}).graphs) == 1


def test_a_method_is_part_of_the_name() -> None:
    class Autoencoder(nn.Module):
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return z / 2

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.decode(self.encode(x))

    vae = Autoencoder()
    program = verify(capture(lambda: vae(vae.decode(vae.encode(torch.randn(2)))), {"vae": vae}))
    assert [graph.name for graph in program.graphs] == ["vae_encode", "vae_decode", "vae"]
    assert [graph.component for graph in program.graphs] == ["vae"] * 3


@pytest.mark.parametrize("name", ["noise", "linear", "split"])
def test_a_component_does_not_take_the_name_of_a_built_in(name: str) -> None:
    three = Three()
    program = verify(capture(lambda: three(torch.randn(2, 3))[0], {name: three}))
    assert program.graphs[0].name == f"{name}_graph"


def test_an_output_does_not_take_the_name_of_an_input() -> None:
    class Same(nn.Module):
        def forward(self, sample: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sample": sample + 1}

    same = Same()
    program = verify(capture(lambda: same(torch.randn(2))["sample"], {"same": same}))
    assert [port.name for port in program.graphs[0].outputs] == ["sample_out"]


def test_a_component_that_branches_on_values_is_named() -> None:
    class Branches(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return sample if sample.sum() > 0 else -sample

    branches = Branches()
    with pytest.raises(CaptureError):
        capture(lambda: branches(torch.randn(2)), {"branches": branches})


def test_what_cannot_be_exported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setattr(torch.export, "export", refuse)
    three = Three()
    with pytest.raises(CaptureError) as caught:
        capture(lambda: three(torch.randn(2, 3))[0], {"three": three})
    assert caught.value.what == "three cannot be captured: RuntimeError: no such operator"
    assert caught.value.where == "the component three"


def test_types_are_in_the_terms_of_the_ir() -> None:
    assert type_of(torch.zeros(2, 3, dtype=torch.bfloat16)) == Type("bfloat16", (2, 3))


class Nested(nn.Module):
    """Call its parts as those that hold graphs call theirs, and read a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 3)
        self.region = nn.ModuleDict({"body": nn.Linear(3, 3, bias=False)})

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Apply both."""
        return self.region["body"](self.module(sample)) + torch.tensor([1e6, 2.0, 3.0])


class Twice(nn.Module):
    """Run a graph on two samples at once."""

    def __init__(self, region: nn.Module) -> None:
        super().__init__()
        self.region = region

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        """Add an axis to the graph's own."""
        return (torch.vmap(self.region)(sample)[0],)


def layers(graph: Graph) -> list[str]:
    """List the layers of what the operators of a graph read."""
    return [node.meta[LAYER] for node in body_of(graph).graph.find_nodes(op="get_attr") if LAYER in node.meta]


def test_layers_keep_their_names_through_every_export_and_constants_have_none() -> None:
    def sample() -> torch.Tensor:
        return components["net"](torch.randn(2, 3))

    components = {"net": Nested().requires_grad_(False)}
    (graph,) = capture(sample, components).graphs
    assert sorted(layers(graph)) == ["module", "module", "region.body"]
    half = mixed_precision(graph, dtype=torch.float16)
    copied = replace(half, body=export("net", body_of(half), [torch.zeros(2, 3)]))
    batched = replace(copied, body=export("net", Twice(body_of(copied)), [torch.zeros(2, 2, 3)]))
    for exported in (half, copied, batched):
        assert sorted(layers(exported)) == ["module", "module", "region.body"]
