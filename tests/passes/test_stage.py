"""A tiny denoiser with a layer for each stage: what leaves the loop, what stays, and that the numbers do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from diffc.compiler.analysis import hoisting
from diffc.compiler.analysis.stages import NAMES
from diffc.compiler.analysis.work import work_by_stage
from diffc.compiler.errors import DiffcWarning
from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.ir.program import Graph, Op, Program
from diffc.compiler.tracing.trace import capture
from diffc.passes.fuse_linear import fuse_linear
from diffc.passes.stage import stage
from diffc.runtime.program.verify import verify
from tests.request_values import request_values
from tests.tolerances import STAGED

WIDTH, TOKENS = 16, 5
TIMES = (900.0, 500.0, 100.0)


class Denoiser(nn.Module):
    """Mix a picture with the time, the text, both, and positions that never change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time = nn.Linear(8, WIDTH)
        self.text = nn.Linear(4, WIDTH)
        self.modulation = nn.Linear(WIDTH, 2 * WIDTH)
        self.picture = nn.Linear(WIDTH, WIDTH)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Attend to the text, after a norm that time and text modulate."""
        angles = timestep[:, None] * torch.exp(-torch.arange(4.0))
        time = nn.functional.silu(self.time(torch.cat([angles.sin(), angles.cos()], -1)))
        keys = self.text(text)
        scale, shift = self.modulation(time + keys.mean(1)).chunk(2, -1)
        positions = torch.outer(torch.arange(WIDTH) / WIDTH, torch.ones(WIDTH)).cos()
        hidden = self.picture(sample) * (1 + scale) + shift + positions[3]
        weights = torch.softmax(hidden[:, None] @ keys.transpose(1, 2), -1)
        return (weights @ keys)[:, 0] + hidden + text.mean() * 2


class Words:
    """Stand for a tokenizer."""

    pad_token_id = 0

    def __call__(self, text: list[str], **_: object) -> dict[str, torch.Tensor]:
        """Give five ids for each text."""
        return {key: torch.ones(len(text), TOKENS).long() for key in ("input_ids", "attention_mask")}


Function = Callable[..., torch.Tensor]


def sampler(denoiser: nn.Module, times: Sequence[float] = TIMES, negative: bool = False) -> tuple[Function, Program]:
    """Write a sampler by hand, and capture it."""
    words, encoder = Words(), nn.Embedding(10, 4)
    encoder.weight.data = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))

    def sample(prompt: list[str], guidance: float = 2.0) -> torch.Tensor:
        text = encoder(words(prompt, padding="max_length", truncation=True, return_tensors="pt")["input_ids"])
        latents, opposite = torch.randn(1, WIDTH), -text
        for time in times:
            there = denoiser(latents, torch.tensor([time]), text)
            back = denoiser(latents, torch.tensor([time]), opposite) if negative else latents
            latents = latents + 0.1 * (back + guidance * (there - back))
        return latents

    return sample, fuse_linear(capture(sample, {"words": words, "encoder": encoder, "denoiser": denoiser}))


def same(function: Function, staged: Program) -> None:
    """Check the staged program against the function that it was captured from."""
    torch.manual_seed(0)
    with torch.no_grad():
        wanted = function(["x"])
    torch.manual_seed(0)
    tokens = [torch.ones(1, TOKENS).long()] * 2
    found = evaluate(verify(staged), request_values(staged, [torch.randn(1, WIDTH)], prompt=tokens))
    assert (found[0] - wanted).abs().max() <= STAGED * wanted.abs().max()


def graph(program: Program, name: str) -> Graph:
    """Find a graph that must be there."""
    found = program.graph(name)
    assert found is not None, f"{name} is not among {[g.name for g in program.graphs]}"
    return found


def weights(of: Graph) -> set[str]:
    """List the layers whose weights a graph holds."""
    return {name.split(".")[-2] for name, tensor in of.body.state_dict.items() if isinstance(tensor, nn.Parameter)}


def operators(of: Graph) -> set[str]:
    """List what a graph applies."""
    return {str(node.target) for node in of.body.graph.nodes if node.op == "call_function"}


def called(program: Program, name: str) -> list[Op]:
    """List the calls of a graph."""
    return [op for op in program.ops if op.operator == name]


# What leaves the loop


def test_each_layer_works_in_its_stage() -> None:
    function, program = sampler(Denoiser())
    (staged,) = stage([program])
    same(function, staged)
    assert weights(graph(staged, "denoiser")) == {"picture"}
    assert weights(graph(staged, "denoiser_request")) == {"text"}
    assert weights(graph(staged, "denoiser_request_step")) == {"text", "modulation"}
    assert all("time" not in weights(each) for each in staged.graphs), "what the step needs is a table"


def test_what_comes_before_the_loop_is_called_once() -> None:
    _, program = sampler(Denoiser())
    (staged,) = stage([program])
    assert [len(called(staged, f"denoiser{part}")) for part in ("_request", "_request_step", "")] == [1, 1, 3]
    names = [op.operator for op in staged.ops]
    assert names.index("denoiser_request_step") < names.index("denoiser")
    assert len(next(op for op in staged.ops if op.operator == "split").results) == len(TIMES)
    assert not [table for table in staged.tables if table.type.shape[0] != len(TIMES)]


def test_the_time_becomes_the_row_of_a_table() -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Linear(1, WIDTH)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return sample * self.time(timestep[:, None]) + text.mean()

    function, program = sampler(Timed(), times=(900.0, 100.0, 900.0))
    (staged,) = stage([program])
    same(function, staged)
    rows = [op.attr("step") for op in called(staged, "denoiser")]
    assert rows[0] == rows[2] != rows[1], "the same time is the same row"
    assert [port.name for port in graph(staged, "denoiser").inputs] == ["sample", "text", "step"]
    assert [table.type.shape for table in staged.tables] == [(2, WIDTH)]
    assert not graph(staged, "denoiser").body.state_dict


def test_positions_are_a_constant() -> None:
    _, program = sampler(Denoiser())
    (staged,) = stage([program])
    assert "aten.cos.default" in operators(graph(program, "denoiser"))
    assert "aten.cos.default" not in operators(graph(staged, "denoiser"))


def test_two_conditions_are_each_prepared_once() -> None:
    function, program = sampler(Denoiser(), negative=True)
    (staged,) = stage([program])
    same(function, staged)
    assert [len(called(staged, f"denoiser{part}")) for part in ("_request", "_request_step", "")] == [2, 2, 6]
    assert work_by_stage([staged]).parameters["latent"] == sum(p.numel() for p in Denoiser().picture.parameters())


def test_programs_share_what_is_split_off() -> None:
    denoiser = Denoiser()
    (one, first), (two, second) = sampler(denoiser), sampler(denoiser, times=(700.0, 500.0))
    graphs = {each.name: each for each in first.graphs}
    second = Program(**{**vars(second), "graphs": tuple(graphs[g.name] for g in second.graphs)})
    long, short = stage([first, second])
    same(one, long)
    same(two, short)
    assert graph(long, "denoiser") is graph(short, "denoiser")
    assert graph(long, "denoiser_request") is graph(short, "denoiser_request")
    assert graph(long, "denoiser_request_step").outputs != graph(short, "denoiser_request_step_2").outputs


# What stays


def test_arithmetic_that_saves_no_multiplication_stays() -> None:
    _, program = sampler(Denoiser())
    (staged,) = stage([program])
    assert "text" in [port.name for port in graph(staged, "denoiser").inputs], "its mean is as cheap as its storage"


def test_a_value_larger_than_what_it_is_made_of_stays() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = nn.Linear(4, WIDTH)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            wide = self.text(text.mean(1)) * torch.ones(64, 1)
            return sample + wide.relu().mean(0) + timestep

    function, program = sampler(Wide())
    (staged,) = stage([program])
    same(function, staged)
    assert graph(staged, "denoiser_request").outputs[0].type.shape == (1, WIDTH)


def test_a_table_too_large_is_computed_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.picture = nn.Linear(WIDTH, WIDTH)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return self.picture(sample) + (timestep * 0.001).cos() + text.mean()

    function, program = sampler(Broad())
    monkeypatch.setattr(hoisting, "FREE_BYTES", 0)
    with pytest.warns(DiffcWarning, match=r"in each of 3 steps: a table of it would take 0 MB"):
        (staged,) = stage([program])
    same(function, staged)
    assert [op.attr("timestep") for op in called(staged, "denoiser")] == [(time,) for time in TIMES]


def test_a_condition_that_changes_with_every_call_stays() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = nn.Linear(4, WIDTH)

        def forward(self, sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return sample + self.text(text)

    words, plain = Words(), Plain()

    def sample(prompt: list[str], guidance: float = 2.0) -> torch.Tensor:
        ids = words(prompt, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        latents = torch.randn(1, WIDTH)
        for time in TIMES:
            latents = plain(latents, ids[:, :4] * time * guidance)
        return latents

    program = fuse_linear(capture(sample, {"words": words, "plain": plain}))
    assert stage([program]) == (program,)


def test_a_component_without_latents_is_left_alone() -> None:
    _, program = sampler(Denoiser())
    (staged,) = stage([program])
    assert graph(staged, "encoder") is graph(program, "encoder")


def test_staging_again_changes_nothing() -> None:
    _, program = sampler(Denoiser())
    staged = stage([program])
    assert stage(staged) == staged


def test_the_work_of_the_loop_is_counted() -> None:
    _, program = sampler(Denoiser())
    work = work_by_stage([program])
    assert work.multiply_adds["step"] == 8 * WIDTH
    assert work.multiply_adds["request"] == TOKENS * 4 * WIDTH
    assert work.multiply_adds["request_step"] == WIDTH * 2 * WIDTH
    assert work.multiply_adds["latent"] == WIDTH * WIDTH + 2 * TOKENS * WIDTH
    assert list(work.parameters) == list(NAMES)
