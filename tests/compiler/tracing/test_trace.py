"""Small samplers, written by hand: what is recorded is what they do, and their components are as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from diffc.compiler.errors import CaptureError
from diffc.compiler.ir.program import Type
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.request_inputs import Text
from diffc.compiler.tracing.trace import capture, trace
from tests.small_models import Model, Words, operators, same_as_torch

# What is recorded


def test_a_loop_unrolls_itself() -> None:
    model = Model()

    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        for sigma in torch.linspace(1, 0, 3):
            latents = latents - sigma * model(latents, sigma)
        return latents

    program = same_as_torch(sample, model=model)
    assert operators(program) == ["noise", *["model", "aten.mul.Tensor", "aten.sub.Tensor"] * 3]
    assert [op.attr("timestep") for op in program.ops if op.operator == "model"] == [1.0, 0.5, 0.0]


def test_shapes_are_known_while_tracing() -> None:
    seen = []

    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        wide = torch.cat([latents, latents], dim=1)
        seen.append((tuple(wide.shape), wide.dtype, wide.device.type, wide.dim(), len(wide)))
        return wide.reshape(-1)[: wide.shape[0]]

    same_as_torch(sample)
    assert seen[0] == ((2, 6), torch.float32, "cpu", 2, 2)


def test_draws_are_noise_in_their_order() -> None:
    def sample() -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.randn(2, 3)
        torch.randn(4)
        second = torch.randn_like(first)
        third = torch.randn((2, 3), generator=None, device="cpu", dtype=torch.float32)
        return first - second, third

    program = same_as_torch(sample)
    shapes = [op.results[0].type for op in program.ops if op.operator == "noise"]
    assert shapes == [Type("float32", shape) for shape in ((2, 3), (4,), (2, 3), (2, 3))]


def test_what_touches_nothing_symbolic_just_runs() -> None:
    def sample() -> torch.Tensor:
        schedule = torch.linspace(0, 1, 5).cumprod(0).sqrt()
        if schedule[1].item() < 1 and bool(schedule.isfinite().all()):
            schedule[0] = 2.0
        return torch.randn(5) * schedule

    program = same_as_torch(sample)
    assert operators(program) == ["noise", "aten.mul.Tensor"]
    assert program.tables[0].data is not None and program.tables[0].data[0] == 2.0


def test_equal_constants_share_a_table() -> None:
    def sample() -> torch.Tensor:
        return torch.randn(3) * torch.arange(3.0) + torch.arange(3.0)

    assert len(same_as_torch(sample).tables) == 1


def test_a_constant_that_changes_later_is_the_one_that_was_used() -> None:
    def sample() -> torch.Tensor:
        weights = torch.ones(3)
        latents = torch.randn(3) * weights
        weights.mul_(5)
        return latents + weights

    same_as_torch(sample)


def test_writing_in_place_makes_a_new_value() -> None:
    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        alias = latents
        before = latents * 1
        latents.mul_(3.0).add_(before, alpha=2)
        alias += 1
        return latents - before

    assert "aten.mul_.Tensor" not in operators(same_as_torch(sample))


def test_a_view_of_what_is_written_changes_with_it() -> None:
    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        row = latents[0]
        latents.mul_(3.0)
        return row + 1

    same_as_torch(sample)


def test_a_component_reads_a_view_as_it_is_now() -> None:
    model = Model()

    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        row = latents[0:1]
        latents.mul_(3.0)
        return model(row)

    same_as_torch(sample, model=model)


def test_a_returned_view_is_as_it_is_now() -> None:
    def sample() -> torch.Tensor:
        latents = torch.randn(2, 3)
        row = latents[0:1]
        latents.mul_(3.0)
        return row

    same_as_torch(sample)


def test_an_operator_with_several_results() -> None:
    def sample() -> torch.Tensor:
        one, other = torch.randn(4, 3).chunk(2)
        values, _ = torch.sort(one - other, dim=-1)
        return values

    assert "aten.split.Tensor" in operators(same_as_torch(sample))


def test_attention_outside_of_components_is_recorded() -> None:
    def sample() -> torch.Tensor:
        query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
        return nn.functional.scaled_dot_product_attention(query, key, key)

    assert operators(capture(sample, {})).count("aten.bmm.default") == 2


def test_a_component_that_calls_a_component_is_one_call() -> None:
    inner = Model()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return self.inner(sample) + self.inner(-sample)

    outer = Outer()

    def sample() -> torch.Tensor:
        return outer(inner(torch.randn(2, 3)))

    assert operators(same_as_torch(sample, inner=inner, outer=outer)) == ["noise", "inner", "outer"]


def test_a_component_keeps_its_form_of_return() -> None:
    class Pair(nn.Module):
        def forward(self, sample: torch.Tensor) -> dict[str, Any]:
            return {"half": sample / 2, "name": "pair", "more": [sample + 1]}

    pair = Pair()

    def sample() -> torch.Tensor:
        given = pair(sample=torch.randn(2, 3))
        assert given["name"] == "pair"
        return given["half"] - given["more"][0]

    (graph,) = same_as_torch(sample, pair=pair).graphs
    assert [port.name for port in graph.outputs] == ["half", "more_0"]


def test_the_latents_of_each_step_are_told() -> None:
    def sample(on_step: Callable[[Any], None]) -> torch.Tensor:
        latents = torch.randn(2, 3)
        for _ in range(2):
            latents = latents * 0.5
            on_step(latents)
        return latents

    assert operators(capture(sample, {})) == ["noise", *["aten.mul.Tensor", "step"] * 2]


# State


@pytest.mark.parametrize("fails", [False, True])
def test_components_are_as_they_were(fails: bool) -> None:
    model, words = Model(), Words()
    hooked = Model()
    hooked.forward = hooked.forward  # type: ignore[method-assign]
    before = hooked.__dict__["forward"]

    def sample(prompt: list[str]) -> torch.Tensor:
        words(prompt, return_tensors="pt")
        latents = hooked(model(torch.randn(2, 3)))
        return latents * latents[0, 0].item() if fails else latents

    components = {"model": model, "same": model, "hooked": hooked, "words": words}
    if fails:
        with pytest.raises(CaptureError):
            capture(sample, components)
    else:
        capture(sample, components)
    assert not {"forward", "encode", "decode"} & model.__dict__.keys()
    assert hooked.__dict__["forward"] is before
    assert type(words) is Words
    assert torch.is_grad_enabled()
    assert type(torch.randn(2)) is torch.Tensor
    assert model(torch.ones(1, 3)).shape == (1, 3)


def test_a_program_may_be_traced_before_its_graphs_are_made() -> None:
    model = Model()
    program = trace(
        lambda prompt: model(torch.randn(1, 3)), {"model": model}, {"prompt": Text()}, calls=ComponentCalls()
    )
    assert program.graphs == () and operators(program) == ["noise", "model"]


def test_a_component_may_be_moved_to_the_type_that_it_has() -> None:
    model = Model()

    def sample() -> torch.Tensor:
        model.to(dtype=torch.float32)
        return model(torch.randn(2, 3))

    same_as_torch(sample, model=model)


def test_a_component_that_is_cast_is_refused() -> None:
    model = Model()

    def sample() -> torch.Tensor:
        return model.to(torch.float16)(torch.randn(2, 3))

    with pytest.raises(CaptureError, match=r"casts model to torch\.float16"):
        capture(sample, {"model": model})
