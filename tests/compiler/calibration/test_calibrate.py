"""What calibration sees is the program's own trajectory; an interrupted one goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.calibration import run_program
from diffc.compiler.calibration.calibrate import Calibration, Calibrator
from diffc.compiler.calibration.prompts import PROMPTS
from diffc.compiler.calibration.run_program import request_of
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.driver.pass_manager import run
from diffc.compiler.errors import CalibrationError
from diffc.compiler.graph import evaluate as graph_evaluate
from diffc.compiler.graph import lazy_weights
from diffc.compiler.graph.body import body_of
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.trace import capture
from diffc.passes import NORMAL_FORM
from diffc.runtime.disk_cache import Cache
from tests.tolerances import STAGED
from tests.zoo.components import clip_tokenizer

STEPS, LENGTH, GUIDANCE = 3, 64, 4.0

OnStep = Callable[[torch.Tensor], None]


class Encoder(nn.Module):
    """Stand for a text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(600, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Average the words."""
        return self.table(ids).mean(1)


class Denoiser(nn.Module):
    """Predict noise from a picture, a time and a text."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3, padding=1)
        self.text = nn.Linear(8, 16)
        self.out = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, sample: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Join the three."""
        hidden = self.conv(sample) + self.text(text)[:, :, None, None]
        return self.out(torch.tanh(hidden) * torch.cos(time)[:, None, None, None])


class Sampler:
    """Sample with guidance, eagerly or as a program."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.tokenizer = clip_tokenizer()
        self.encoder, self.denoiser = Encoder().requires_grad_(False), Denoiser().requires_grad_(False)

    def __call__(
        self, prompt: list[str], negative_prompt: list[str], on_step: OnStep, guidance: float = GUIDANCE
    ) -> torch.Tensor:
        """Sample a picture."""
        texts = []
        for words in (negative_prompt, prompt):
            tokens = self.tokenizer(
                words, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
            )
            texts.append(self.encoder(tokens["input_ids"]))
        latents = torch.randn(1, 4, 6, 6)
        for step in range(STEPS):
            both = self.denoiser(torch.cat([latents] * 2), torch.full((2,), 0.5 * step), torch.cat(texts))
            without, guided = both.chunk(2)
            latents = latents - 0.3 * (without + guidance * (guided - without))
            on_step(latents * 0.5)
        return latents * 2 + 1

    def program(self) -> Program:
        """Compile it."""
        components = {"tokenizer": self.tokenizer, "encoder": self.encoder, "denoiser": self.denoiser}
        return run(capture(self.__call__, components), NORMAL_FORM)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    """Make a sampler with weights."""
    return Sampler()


@pytest.fixture(scope="module")
def program(sampler: Sampler) -> Program:
    """Compile the sampler."""
    return sampler.program()


@pytest.fixture(scope="module")
def tokenizers(sampler: Sampler) -> dict[str, bytes]:
    """Give the tokenizer as bundles hold it."""
    backend = clip_tokenizer().backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return {"tokenizer": backend.to_str().encode()}


@pytest.fixture(scope="module")
def calibration(program: Program, tokenizers: dict[str, bytes]) -> Calibration:
    """Sample two prompts."""
    return Calibrator(tokenizers, prompts=("a red circle", "blue"), seed=3)(program)


def test_the_trajectory_is_that_of_the_function_that_was_compiled(
    sampler: Sampler, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trajectory in calibration.trajectories:
        (noise,) = request_of(calibration.program, trajectory.prompt, trajectory.seed)[1].values()
        monkeypatch.setattr(torch, "randn", lambda *_, noise=noise: torch.from_numpy(noise))
        steps = list[torch.Tensor]()
        wanted = [sampler([trajectory.prompt], [""], steps.append), *steps]
        assert len(trajectory.steps) == STEPS
        for made, each in zip([trajectory.output, *trajectory.steps], wanted, strict=True):
            assert (made - each).abs().max() <= STAGED * each.abs().max()


def test_a_seed_draws_what_it_draws_in_a_bundle(calibration: Calibration) -> None:
    first, second = ([*request_of(calibration.program, "", seed)[1].values()][0] for seed in (3, 4))
    assert [trajectory.seed for trajectory in calibration.trajectories] == [3, 4]
    for noise, seed in ((first, 3), (second, 4)):
        wanted = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
        assert np.abs(noise - wanted.numpy()).max() <= STAGED


def test_every_graph_with_weights_is_seen_in_every_call(calibration: Calibration) -> None:
    program = calibration.program
    for graph in program.graphs:
        called = sum(op.operator == graph.name for op in program.ops)
        samples = calibration.of(graph)
        if not samples:
            assert not graph.body.state_dict or not called
            continue
        assert [(s.prompt, s.step, s.of) for s in samples] == [(p, s, called) for p in (0, 1) for s in range(called)]
        for sample in samples:
            assert [tuple(feed.shape) for feed in sample.feeds] == [
                port.type.shape for port in graph.inputs if port.type
            ]


def test_few_samples_are_drawn_from_all_and_always_the_same(calibration: Calibration) -> None:
    few = calibration.few(2)
    kept = [sample.graph for sample in few.samples]
    assert set(kept) == {sample.graph for sample in calibration.samples} and max(map(kept.count, kept)) == 2
    assert [id(s) for s in few.samples] == [id(s) for s in calibration.few(2).samples]
    assert {id(s) for s in few.samples} <= {id(s) for s in calibration.samples}
    assert calibration.few(1000).samples == calibration.samples


def test_what_was_drawn_is_kept_and_read_again(
    program: Program, tokenizers: dict[str, bytes], calibration: Calibration, tmp_path: Path
) -> None:
    said, cache = list[str](), Cache(tmp_path)
    one, two = calibration.prompts
    for prompts in ((one,), (one, two), (one, two)):
        again = Calibrator(tokenizers, prompts, 3, "a", cache, progress=said.append)(program)
    assert said == [f"calibrate 1: {one}", f"calibrate 2: {two}"]
    for found, wanted in zip(again.trajectories, calibration.trajectories, strict=True):
        assert torch.equal(found.output, wanted.output) and found.prompt == wanted.prompt
        assert all(torch.equal(a, b) for a, b in zip(found.steps, wanted.steps, strict=True))
    for a, b in zip(again.samples, calibration.samples, strict=True):
        assert (a.graph, a.step, a.of, a.prompt) == (b.graph, b.step, b.of, b.prompt)
        assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a.feeds, b.feeds, strict=True))


@pytest.mark.parametrize("damage", [b"", b"none", bytes(100)], ids=["empty", "short", "zeros"])
def test_a_damaged_entry_is_drawn_again(
    damage: bytes, program: Program, tokenizers: dict[str, bytes], tmp_path: Path
) -> None:
    cache = Cache(tmp_path)
    first = Calibrator(tokenizers, prompts=("a",), source="a", cache=cache)(program)
    ((path, _),) = cache.entries()
    cache.put(path.stem, damage)
    assert torch.equal(
        Calibrator(tokenizers, prompts=("a",), source="a", cache=cache)(program).trajectories[0].output,
        first.trajectories[0].output,
    )


def test_weights_prompts_seed_and_program_tell_calibrations_apart(
    program: Program, tokenizers: dict[str, bytes], tmp_path: Path
) -> None:
    cache = Cache(tmp_path)

    def digest(prompt: str = "a", source: str = "a", seed: int = 0) -> str:
        return Calibrator(tokenizers, prompts=(prompt,), seed=seed, source=source, cache=cache)(program).digest

    assert digest() == digest()
    assert len({digest(), digest(prompt="b"), digest(source="b"), digest(seed=1)}) == 4
    assert len(cache.entries()) == 4


class Scales(nn.Module):
    """Make large numbers larger."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((600,), 1e20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Overflow in the second call."""
        return x * self.weight


def overflowing() -> Program:
    """Capture two calls of a module."""
    scales = Scales().requires_grad_(False)
    return run(capture(lambda: scales(scales(torch.randn(600))), {"scales": scales}), NORMAL_FORM)


def test_infinity_is_reported_with_its_graph_and_call() -> None:
    with pytest.raises(CalibrationError) as refused:
        Calibrator({}, prompts=("a b",))(overflowing())
    assert "scales computes NaN or infinity for" in refused.value.what
    assert refused.value.where == "call 2 of 2, for the prompt 'a b'"


def test_what_draws_gives_its_weights_back(tokenizers: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_weights, "EAGER_ELEMENTS", 0)
    sampler, bodies = Sampler(), list[nn.Module]()
    lazy_weights.make_lazy("denoiser", sampler.denoiser, "here")
    calibration = Calibrator(tokenizers, prompts=("a red circle",))(sampler.program())
    monkeypatch.setattr(graph_evaluate, "body_of", lambda graph: bodies.append(body_of(graph)) or bodies[-1])

    def lent() -> list[bool]:
        (body,) = [body for body in bodies if any("conv" in name for name, _ in body.named_parameters())]
        return [isinstance(tensor, lazy_weights.LazyWeight) for tensor in body.parameters()]

    with calibration.sampling(calibration.program) as run_sampler:
        assert np.array_equal(run_sampler(1, {})[0].output, calibration.trajectories[0].output)
        assert not any(lent())
    assert lent() == [True] * 6


def test_built_in_prompts_end_when_much_work_was_done(program: Program, tokenizers: dict[str, bytes]) -> None:
    work = 2.5 * run_program.ProgramRun(program, {}).work
    assert Calibrator(tokenizers, work=work)(program).prompts == PROMPTS[:3]
    assert len(Calibrator(tokenizers, prompts=("a", "b", "c", "d"), work=work)(program).prompts) == 4
    assert Calibrator(tokenizers, work=0.0)(program).prompts == PROMPTS[:1]


def test_a_calibration_in_use_is_returned_again(program: Program, tokenizers: dict[str, bytes]) -> None:
    lines = list[str]()
    calibrator = Calibrator(tokenizers, prompts=("a red circle",), progress=lines.append)
    calibration = calibrator(program)
    assert calibrator(replace(program)) is calibration and len(lines) == 1
    assert calibrator(replace(program, name="another")) is not calibration and len(lines) == 2
    del calibration
    calibrator(program)
    assert len(lines) == 3, "nobody used it: its samples were not kept in memory"


def test_a_calibration_reads_as_a_table() -> None:
    samples = tuple(
        Sample(graph, step, of, 0, ()) for graph, of in (("encoder", 1), ("denoiser", 3)) for step in range(of)
    )
    title, *rows = str(Calibration(Program("main"), samples, (), 7, "abc")).splitlines()
    assert title == "main: 0 prompts from seed 7, digest abc"
    assert [row.split() for row in rows] == [
        ["graph", "calls", "samples"],
        ["encoder", "1", "1"],
        ["denoiser", "3", "3"],
    ]
