"""Caches of a tiny UNet and a tiny transformer, against samplers in PyTorch that reuse by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.analysis.stages import calls, denoisers
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.apply_schedule import Feature, Reuse, Schedule, cached, evaluations
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.ir.parse import parse
from diffc.compiler.ir.program import Graph, Program, Table
from diffc.compiler.tracing.trace import capture
from diffc.passes.fuse_linear import fuse_linear
from diffc.passes.stage import stage
from diffc.runtime.program.verify import verify
from tests.request_values import request_values
from tests.tolerances import STAGED

CHANNELS, TOKENS = 6, 5
TIMES = (900.0, 700.0, 500.0, 300.0, 100.0)

Kept = dict[str, torch.Tensor]


class Words:
    """Stand for a tokenizer."""

    pad_token_id = 0

    def __call__(self, text: list[str], **_: object) -> dict[str, torch.Tensor]:
        """Give five ids for each text."""
        return {key: torch.ones(len(text), TOKENS).long() for key in ("input_ids", "attention_mask")}


class UNet(nn.Module):
    """Halve a picture, look at the text, and join the halves with what was there before, twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time, self.text = nn.Linear(1, CHANNELS), nn.Linear(4, CHANNELS)
        self.into, self.down = nn.Conv2d(2, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)
        self.middle, self.up = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        self.out = nn.Conv2d(2 * CHANNELS, 2, 3, padding=1)

    def deep(self, first: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Compute all but the outermost level."""
        low = torch.tanh(self.down(first) + time)
        middle = self.middle(low * torch.sigmoid(self.text(text).mean(1)[:, :, None, None]))
        return nn.functional.interpolate(torch.tanh(self.up(torch.cat([middle, low], 1))), scale_factor=2.0)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Compute everything."""
        return self.parts(sample, timestep, text)[0]

    def parts(
        self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, kept: Kept | None = None
    ) -> tuple[torch.Tensor, Kept]:
        """Compute with the deep feature that is given, if any; give what is to be kept."""
        time = torch.tanh(self.time(timestep[:, None] / 1000))[:, :, None, None]
        first = torch.tanh(self.into(sample))
        deep = kept["deep"] if kept else self.deep(first, time, text)
        return self.out(torch.cat([deep + time, torch.tanh(first + time)], 1)), {"deep": deep}


class Transformer(nn.Module):
    """Four residual blocks that the time modulates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.time, self.text = nn.Linear(1, 8), nn.Linear(4, 8)
        self.into, self.out = nn.Linear(2, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Compute everything."""
        return self.parts(sample, timestep, text)[0]

    def parts(
        self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, kept: Kept | None = None
    ) -> tuple[torch.Tensor, Kept]:
        """Leave out the two blocks in the middle if their sum is given; give it."""
        tokens = self.into(sample.flatten(2).transpose(1, 2))
        scale = 1 + self.time(timestep[:, None] / 1000)[:, None] + self.text(text).mean(1)[:, None]
        tokens = tokens + torch.tanh(self.blocks[0](tokens * scale))
        before = tokens
        if kept:
            tokens = tokens + kept["residual"]
        else:
            for block in self.blocks[1:3]:
                tokens = tokens + torch.tanh(block(tokens * scale))
        residual = tokens - before
        tokens = tokens + torch.tanh(self.blocks[3](tokens * scale))
        return self.out(tokens).transpose(1, 2).reshape(sample.shape), {"residual": residual}


Denoiser = UNet | Transformer


def captured(
    denoiser: nn.Module, times: Sequence[float] = TIMES, *, guided: bool = False, name: str = "main"
) -> Program:
    """Write a sampler by hand, and capture it; ``guided`` calls the denoiser twice in each step."""
    words, encoder = Words(), nn.Embedding(10, 4)
    encoder.weight.data = torch.randn(10, 4, generator=torch.Generator().manual_seed(2))

    def sample(prompt: list[str], guidance: float = 2.0) -> torch.Tensor:
        text = encoder(words(prompt, padding="max_length", truncation=True, return_tensors="pt")["input_ids"])
        latents, opposite = torch.randn(1, 2, 4, 4), -text
        for time in times:
            there = denoiser(latents, torch.tensor([time]), text)
            back = denoiser(latents, torch.tensor([time]), opposite) if guided else latents
            latents = latents + 0.1 * (back + guidance * (there - back))
        return latents

    made = fuse_linear(capture(sample, {"words": words, "encoder": encoder, "denoiser": denoiser}))
    return replace(made, name=name)


def together(denoiser: nn.Module, *counts: int, guided: bool = False) -> tuple[Program, ...]:
    """Stage programs of several steps, ``p5`` and so on, that share their graphs."""
    programs = [captured(denoiser, TIMES[:count], guided=guided, name=f"p{count}") for count in counts]
    graphs = {graph.name: graph for graph in programs[0].graphs}
    return stage([replace(p, graphs=tuple(graphs[g.name] for g in p.graphs)) for p in programs])


def by_hand(
    denoiser: Denoiser,
    sources: Sequence[int],
    *,
    guided: bool = False,
    correct: Callable[[int, torch.Tensor], torch.Tensor] = lambda _, kept: kept,
    times: Sequence[float] = TIMES,
) -> torch.Tensor:
    """Sample where step n reuses what step ``sources[n]`` computed; n itself computes."""
    encoder = torch.randn(10, 4, generator=torch.Generator().manual_seed(2))
    text, latents = encoder[torch.ones(1, TOKENS).long()], noise()
    kept: dict[tuple[int, bool], Kept] = {}
    with torch.no_grad():
        for step, (time, source) in enumerate(zip(times, sources, strict=True)):

            def call(given: torch.Tensor, negative: bool, step: int = step, at: Any = (time, source)) -> torch.Tensor:
                old = kept.get((at[1], negative)) if at[1] != step else None
                old = old and {key: correct(step, each) for key, each in old.items()}
                found, mine = denoiser.parts(given, torch.tensor([at[0]]), -text if negative else text, old)
                kept[step, negative] = mine
                return found

            there = call(latents, False)
            back = call(latents, True) if guided else latents
            latents = latents + 0.1 * (back + 2.0 * (there - back))
    return latents


def noise() -> torch.Tensor:
    """Sample the first latents."""
    return torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(3))


def run(program: Program) -> torch.Tensor:
    """Run a program on them."""
    tokens = [torch.ones(1, TOKENS).long()] * 2
    return evaluate(verify(program), request_values(program, [noise()], prompt=tokens))[0]


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Say whether two results are the same but for rounding."""
    return bool((found - wanted).abs().max() <= STAGED * wanted.abs().max())


def nodes(program: Program, target: object) -> list[str]:
    """Name the nodes of the denoiser that apply an operator, in order."""
    return [node.name for node in body_of(denoisers([program])[0]).graph.nodes if node.target == target]


def deep(program: Program) -> Feature:
    """Find what the UNet's up path gives to its outermost level."""
    return Feature(nodes(program, torch.ops.aten.upsample_nearest2d.vec)[0])


def middle(program: Program) -> Feature:
    """Find what the two blocks in the middle of the transformer add."""
    (body,) = [body_of(graph) for graph in denoisers([program])]
    blocks = [node for node in body.graph.nodes if node.target == torch.ops.aten.tanh.default]
    sums = [user.name for block in blocks for user in block.users]
    return Feature(sums[2], base=sums[0])


def follow(feature: Feature, sources: Sequence[int], **options: Any) -> Callable[[Program, Graph, int], Schedule]:
    """Let step n reuse the feature of step ``sources[n]``."""
    return lambda *_: [() if n == source else (Reuse(feature, source, **options),) for n, source in enumerate(sources)]


CASES = [
    pytest.param(denoiser, find, guided, id=f"{denoiser.__name__}{'-guided' * guided}")
    for denoiser, find in ((UNet, deep), (Transformer, middle))
    for guided in (False, True)
]


@pytest.mark.parametrize(("denoiser", "find", "guided"), CASES)
def test_reuse_is_what_it_is_by_hand(denoiser: type[Denoiser], find: Any, guided: bool) -> None:
    model, sources = denoiser(), (0, 0, 0, 3, 3)
    (program,) = together(model, 5, guided=guided)
    (found,) = cached([program], follow(find(program), sources))
    assert close(run(found), by_hand(model, sources, guided=guided))
    assert not close(run(found), by_hand(model, range(5), guided=guided)), "the reuse must be seen"
    assert parse(str(found)) == found


@pytest.mark.parametrize(("denoiser", "find", "guided"), CASES)
def test_the_pieces_together_are_the_graph(denoiser: type[Denoiser], find: Any, guided: bool) -> None:
    """Evaluations that reuse nothing run all pieces of a graph that is cut for others."""
    program, whole = together(denoiser(), 5, 2, guided=guided)
    schedules = {"p5": (0, 0, 0, 3, 3), "p2": (0, 1)}
    _, found = cached([program, whole], lambda p, g, n: follow(find(program), schedules[p.name])(p, g, n))
    assert not calls(found, denoisers([program])[0])
    assert torch.equal(run(found), run(whole))


def test_a_schedule_that_reuses_nothing_leaves_programs_alone() -> None:
    programs = together(UNet(), 5)
    assert cached(programs, follow(deep(programs[0]), range(5))) == programs


def test_a_unet_becomes_three_pieces_with_each_weight_in_one() -> None:
    (program,) = together(UNet(), 5)
    whole = denoisers([program])[0]
    (found,) = cached([program], follow(deep(program), (0, 0, 0, 3, 3)))
    pieces = [graph for graph in found.graphs if graph.name.startswith("denoiser_piece")]
    weights = [sorted({name.split(".")[-2] for name in piece.body.state_dict}) for piece in pieces]
    assert weights == [["into"], ["down", "middle", "up"], ["out"]]
    assert [len(calls(found, piece)) for piece in pieces] == [5, 2, 5]
    assert sum(len(p.body.state_dict) for p in pieces) == len(whole.body.state_dict)
    assert {piece.component for piece in pieces} == {whole.component}
    ports = [[port.name for port in piece.inputs] for piece in pieces]
    assert ["step" in each for each in ports] == [True, True, True], "the row of a table goes to whom it concerns"


def test_work_before_the_loop_that_was_not_staged_is_done_in_one_piece() -> None:
    model, sources = Transformer(), (0, 0, 0, 3, 3)
    program = captured(model)
    (found,) = cached([program], follow(middle(program), sources))
    weights = [name for piece in found.graphs for name in piece.body.state_dict if "denoiser" in piece.name]
    assert sorted(weights) == sorted(denoisers([program])[0].body.state_dict)
    assert close(run(found), by_hand(model, sources))


def test_ports_between_pieces_are_hidden() -> None:
    (program,) = together(UNet(), 5)
    (found,) = cached([program], follow(deep(program), (0, 0, 0, 3, 3)))
    first, inner, last = (graph for graph in found.graphs if "piece" in graph.name)
    assert {port.name for port in first.inputs} - first.hidden == {"sample", "step"}
    assert {port.name for port in first.outputs} == first.hidden
    assert {port.name for port in inner.outputs} == {deep(program).node} == inner.hidden - first.hidden
    assert {port.name for port in last.outputs}.isdisjoint(last.hidden)


def test_a_residual_is_kept_not_the_feature() -> None:
    (program,) = together(Transformer(), 5)
    (found,) = cached([program], follow(middle(program), (0, 0, 0, 3, 3)))
    sums = [op for op in found.ops if op.operator == "linear" and not {"sample"} & {n for n in op.reads()}]
    factors = [
        [c({}) for c in op.coefficients] for op in sums if len(op.args) == 2 and op.results[0].type.shape[-1] == 8
    ]  # type: ignore[union-attr]
    assert sorted(factors) == [[1, -1]] * 2 + [[1, 1]] * 3


def test_a_correction_scales_each_channel() -> None:
    model, sources, random = UNet(), (0, 0, 0, 3, 3), np.random.default_rng(0)
    (program,) = together(model, 5)
    feature, shape = deep(program), (1, CHANNELS, 1, 1)
    rows = {n: [Table.of(random.normal(size=shape).astype(np.float32)) for _ in range(2)] for n in (1, 2, 4)}
    schedule = [
        () if n == source else (Reuse(feature, source, (rows[n][0], rows[n][1])),) for n, source in enumerate(sources)
    ]
    (found,) = cached([program], lambda *_: schedule)

    def correct(step: int, kept: torch.Tensor) -> torch.Tensor:
        factor, term = (torch.as_tensor(row.data) for row in rows[step])
        return factor * kept + term

    assert close(run(found), by_hand(model, sources, correct=correct))
    assert [graph.name for graph in found.graphs if not graph.component] == ["corrected_1"]


def test_programs_share_pieces() -> None:
    model = UNet()
    long, short = together(model, 5, 3)
    schedules = {"p5": (0, 0, 0, 3, 3), "p3": (0, 0, 2)}
    one, two = cached([long, short], lambda p, g, n: follow(deep(long), schedules[p.name])(p, g, n))
    assert close(run(one), by_hand(model, schedules["p5"]))
    assert close(run(two), by_hand(model, schedules["p3"], times=TIMES[:3]))
    for piece in ("denoiser_piece_1", "denoiser_piece_2", "denoiser_piece_3"):
        assert one.graph(piece) is two.graph(piece) is not None


def test_evaluations_wait_for_each_other() -> None:
    """Both branches of guidance are one evaluation; the stages of a solver are two."""
    text = """
    program p() {
        graph f(x: float32[1]) -> (y: float32[1])
        n: float32[1] = noise()
        a: float32[1] = f(x=n)
        b: float32[1] = f(x=n)
        c: float32[1] = linear(a, b; 1, 1)
        d: float32[1] = f(x=c)
        e: float32[1] = f(x=d)
        return e
    }"""
    assert list(evaluations(parse(text), ["f"]).values()) == [0, 0, 1, 2]


def test_a_lane_that_begins_later_computes_for_itself() -> None:
    """A branch of guidance that the source has no call of starts with a whole call."""
    model = UNet()
    (program,) = together(model, 5, guided=True)
    whole = denoisers([program])[0]
    first = [op for op in calls(program, whole)][1]  # the second branch of the first step
    other = calls(program, whole)[0].results[0].name
    renamed = {first.results[0].name: other}
    ops = tuple(op.renamed(renamed) for op in program.ops if op is not first)
    (found,) = cached([replace(program, ops=ops).live()], follow(deep(program), (0, 0, 0, 3, 3)))
    middle_piece = found.graph("denoiser_piece_2")
    assert middle_piece is not None
    assert len(calls(found, middle_piece)) == 2 + 2
    verify(found)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Feature("nowhere"), "nowhere is no feature that can be kept"),
        (Feature("sample"), "sample is no feature that can be kept"),
    ],
)
def test_what_is_no_feature_is_refused(feature: Feature, message: str) -> None:
    (program,) = together(UNet(), 5)
    with pytest.raises(PassError, match=message):
        cached([program], follow(feature, (0, 0, 0, 3, 3)))


def test_a_base_that_does_not_lead_to_the_feature_is_refused() -> None:
    (program,) = together(UNet(), 5)
    feature = Feature(nodes(program, torch.ops.aten.conv2d.default)[0], base=deep(program).node)
    with pytest.raises(PassError, match="is not computed from"):
        cached([program], follow(feature, (0, 0, 0, 3, 3)))


def test_a_schedule_reads_as_a_table() -> None:
    corrected = Reuse(Feature("mid"), 1, (Table.of(np.ones(1)), Table.of(np.zeros(1))))
    schedule = Schedule([(), (Reuse(Feature("up"), 0), Reuse(Feature("down"), 0)), (corrected,)])
    assert str(schedule).splitlines() == [
        "evaluation  reuses",
        "0           -",
        "1           up of 0, down of 0",
        "2           mid of 1 with a correction",
    ]
