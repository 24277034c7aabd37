"""Parameters are counted by the stage in which they are first needed: a tiny denoiser, counted by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from diffc.compiler.analysis.stages import REQUEST, stages_of_values
from diffc.compiler.analysis.work import work_by_stage
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.trace import capture
from diffc.passes.fuse_linear import fuse_linear


class Denoiser(nn.Module):
    """Have one layer for each stage, all of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, 3)  # 6: step
        self.text = nn.Linear(2, 3, bias=False)  # 6: request
        self.mixed = nn.Linear(3, 3)  # 12: request and step
        self.picture = nn.Linear(3, 3, bias=False)  # 9: latent
        self.scale = nn.Parameter(torch.ones(1, 3))  # 3: latent, through a view
        self.shift = nn.Parameter(torch.ones(3))  # 3: step, through a view
        self.position = nn.Parameter(torch.ones(3))  # 3: meets constants, then the latents
        self.unused = nn.Parameter(torch.ones(100))
        self.register_buffer("constant", torch.ones(50))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Mix everything."""
        time = self.time(timestep[:, None]) + self.shift[None]
        given = self.text(text)
        mixed = self.mixed(time + given)
        picture = self.picture(sample) * self.scale.t().reshape(1, 3) + self.constant.sum()
        return torch.tanh(picture + mixed + self.position * 2)


class Encoder(nn.Module):
    """Stand for a text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Average the words."""
        return self.table(ids).mean(1)


class Words:
    """Stand for a tokenizer."""

    pad_token_id = 0

    def __call__(self, text: list[str], **_: object) -> dict[str, torch.Tensor]:
        """Give three ids."""
        return {"input_ids": torch.ones(len(text), 3).long(), "attention_mask": torch.ones(len(text), 3).long()}


def parameters(program: Program) -> Mapping[str, int]:
    """Count the denoiser's parameters by stage."""
    return work_by_stage([program]).parameters


@pytest.fixture(scope="module")
def program() -> Program:
    """Capture two steps of a sampler."""
    words, encoder, denoiser = Words(), Encoder(), Denoiser()

    def sample(prompt: list[str], guidance: float = 2.0) -> torch.Tensor:
        text = encoder(words(prompt, padding="max_length", truncation=True, return_tensors="pt")["input_ids"])
        latents = torch.randn(1, 3)
        for timestep in (900.0, 100.0):
            latents = latents - guidance * denoiser(latents, torch.tensor([timestep]), text)
        return latents

    return fuse_linear(capture(sample, {"words": words, "encoder": encoder, "denoiser": denoiser}))


def test_parameters_are_counted_by_stage(program: Program) -> None:
    assert parameters(program) == {"step": 6 + 3, "request": 6, "request_step": 12, "latent": 9 + 3 + 3}


def test_values_have_stages(program: Program) -> None:
    stages = stages_of_values(program)
    assert stages["prompt"] == stages["ids0"] == stages["encoder0"] == {"request"}
    assert stages["guidance"] == {"request"}
    assert stages["n0"] == {"latent"}
    assert stages["denoiser0"] == stages["x0"] == {"latent", "request"}


def test_a_table_is_known_at_build() -> None:
    sums = "a: float32[1] = linear(t; 2) b: float32[1] = linear(t; g)"
    stages = stages_of_values(parse(f"program p(g: scalar = 1) {{ table t: float32[1] {sums} return b }}"))
    assert (stages["t"], stages["a"], stages["b"]) == (frozenset(), frozenset(), {"request"})


def test_a_timestep_that_never_changes_is_no_step() -> None:
    denoiser = Denoiser()

    def sample() -> torch.Tensor:
        latents = torch.randn(1, 3)
        for _ in range(2):
            latents = denoiser(latents, torch.tensor([1.0]), torch.ones(1, 2))
        return latents

    counts = parameters(capture(sample, {"denoiser": denoiser}))
    assert counts == {"step": 0, "request": 0, "request_step": 0, "latent": 9 + 3 + 3}


def test_the_denoiser_is_called_with_latents_however_often_others_are() -> None:
    class Encodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale.sum()

    denoiser, encoder = Denoiser(), Encodes()

    def sample() -> torch.Tensor:
        text = encoder(encoder(torch.ones(1, 2)))
        latents = torch.randn(1, 3)
        return (denoiser(latents, torch.tensor([1.0]), text).abs().sqrt() + 1).sqrt().abs().sqrt()

    counts = parameters(fuse_linear(capture(sample, {"denoiser": denoiser, "encoder": encoder})))
    assert counts["latent"] >= 9, "one call of the denoiser counts, not two of the encoder"


def test_a_program_without_graphs_has_no_parameters() -> None:
    assert parameters(parse("program p() { n: float32[1] = noise() return n }")) == dict.fromkeys(
        ("step", "request", "request_step", "latent"), 0
    )


def test_a_number_of_tokens_is_known_with_the_request() -> None:
    count = 'i: int64[1, L0] = tokenize(t, tokenizer="t", length=9, pad=0, count="L0") n: int64[] = linear(L0; 1)'
    stages = stages_of_values(parse(f"program p(t: text[1]) {{ length L0 from 1 to 9 {count} return n }}"))
    assert (stages["i"], stages["L0"], stages["n"]) == (REQUEST, REQUEST, REQUEST)
