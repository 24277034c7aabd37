"""Give pipelines of the zoo more transformer blocks, compile them, and let diffusers skip blocks by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from diffc.compiler.bundle.tokenizer_file import tokenizer_text
from diffc.compiler.calibration.calibrate import Calibration, Calibrator
from diffc.compiler.ir.program import Program
from diffc.passes.stage import stage
from tests.zoo import ZOO
from tests.zoo.entry import wake
from tests.zoo.tracing import traced

PROMPT = "a red circle"
NAMES = ("hidden_states", "encoder_hidden_states")

DEPTHS: dict[str, dict[str, int]] = {
    "PixArtAlphaPipeline": {"num_layers": 4},
    "StableDiffusion3Pipeline": {"num_layers": 4},
    "FluxPipeline": {"num_layers": 2, "num_single_layers": 2},
    "CogVideoXPipeline": {"num_layers": 4},
    "WanPipeline": {"num_layers": 4},
}
"""Pipelines by how blocks follow each other: one stream, two, two and then one; four blocks in each."""

FILMS = ("CogVideoXPipeline", "WanPipeline")
EACH = [pytest.param(name, marks=pytest.mark.slow if name in FILMS else ()) for name in DEPTHS]
"""Their names as parameters of a test, films among the slow ones."""

PICTURE_FIRST = ("CogVideoXPipeline",)
"""Whose blocks give the picture's stream and then the text's; others do so the other way round."""

LANES = {"WanPipeline": 2}
"""How often an evaluation calls the transformer, where that is not once."""

Given = dict[str, torch.Tensor]
Skips = Sequence[Sequence[tuple[range, int]]]
"""For each evaluation the spans of blocks that it skips, and the evaluation that computed what they added."""


class Deep:
    """Hold a pipeline whose transformer has four blocks, and the program that it becomes."""

    def __init__(self, name: str, steps: int = 5) -> None:
        self.name, self.entry, self.lanes = name, ZOO[name](), LANES.get(name, 1)
        pipeline = self.entry.pipeline
        self.entry.request["num_inference_steps"] = steps
        torch.manual_seed(0)
        config = dict(pipeline.transformer.config) | DEPTHS[name]
        transformer = type(pipeline.transformer).from_config(config).eval().requires_grad_(False)
        wake(transformer)
        pipeline.register_modules(transformer=transformer)
        (self.program,) = stage([traced(self.entry)])

    @property
    def blocks(self) -> list[nn.Module]:
        """List the blocks in the order in which they run."""
        kinds = ("blocks", "transformer_blocks", "single_transformer_blocks")
        return [block for kind in kinds for block in getattr(self.entry.pipeline.transformer, kind, ())]

    def calibrated(self, program: Program | None = None) -> Calibration:
        """Run a program for the prompt."""
        components = self.entry.pipeline.components.items()
        tokenizers = {key: tokenizer_text(key, it).encode() for key, it in components if key.startswith("tokenizer")}
        return Calibrator(tokenizers, prompts=(PROMPT,))(program or self.program)

    def drawn(self, program: Program) -> torch.Tensor:
        """Sample the prompt with a program; give the last latents where it tells them."""
        (trajectory,) = self.calibrated(program).trajectories
        return trajectory.steps[-1] if trajectory.steps else trajectory.output

    def draw(
        self, skips: Skips = (), watch: Callable[[int, int, Given, Given], None] = lambda *_: None
    ) -> torch.Tensor:
        """Sample with diffusers, the same; ``watch`` is shown each call, block, and what it is given and gives."""
        by_hand = _ByHand(self, skips, watch)
        hook = self.entry.pipeline.transformer.register_forward_pre_hook(by_hand.begin)
        texts = {"prompt": PROMPT, "negative_prompt": ""}
        asked = {key: text for key, text in texts.items() if key in self.entry.request}
        tells = any(op.operator == "step" for op in self.program.ops)
        drawn = self.entry.draw(**asked, output_type="latent" if tells else "pt")
        hook.remove()
        for block in self.blocks:
            del block.forward
        return drawn


@cache
def deep(name: str) -> Deep:
    """Trace a pipeline once for all tests; draws leave it as it is."""
    return Deep(name)


def deviation(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Give the largest difference, relative to the largest value."""
    return float((found - wanted).detach().abs().max() / wanted.abs().max())


class _ByHand:
    """Replace the blocks' methods: a span that is skipped adds what it added in an earlier evaluation."""

    def __init__(self, deep: Deep, skips: Skips, watch: Callable[..., None]) -> None:
        self.skips, self.lanes, self.watch, self.call = skips, deep.lanes, watch, -1
        self.order = NAMES if deep.name in PICTURE_FIRST else NAMES[::-1]
        self.spans = {span for each in skips for span, _ in each}
        self.before, self.added = dict[range, Given](), dict[tuple[int, range], Given]()
        self.is_pair = dict[int, bool]()
        for at, block in enumerate(deep.blocks):
            block.forward = self.replaced(at, block.forward)  # type: ignore[method-assign]

    def begin(self, *_: Any) -> None:
        """Count the calls of the transformer."""
        self.call += 1

    def replaced(self, at: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Give the method that stands for a block's."""
        parameters = list(inspect.signature(forward).parameters)

        def block(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(parameters, args, strict=False)) | kwargs
            streams = {name: given[name] for name in NAMES if given.get(name) is not None}
            evaluation, lane = divmod(self.call, self.lanes)
            for span, source in self.skips[evaluation] if self.skips else ():
                if at in span:
                    added = self.added[source * self.lanes + lane, span] if at == span[0] else {}
                    values = {name: x + added.get(name, 0) for name, x in streams.items()}
                    return tuple(map(values.get, self.order)) if self.is_pair[at] else values[NAMES[0]]
            returned = forward(**given)
            made = self.named(returned)
            self.is_pair[at] = isinstance(returned, tuple)
            self.keep(at, streams, made)
            self.watch(self.call, at, streams, made)
            return returned

        return block

    def named(self, returned: Any) -> dict[str, Any]:
        """Name what a block gave; the last may give None for the text."""
        return dict(zip(self.order, returned, strict=True)) if isinstance(returned, tuple) else {NAMES[0]: returned}

    def keep(self, at: int, streams: Given, made: dict[str, Any]) -> None:
        """Keep what spans add."""
        for span in self.spans:
            if at == span[0]:
                self.before[span] = streams
            if at == span[-1]:
                before = self.before[span]
                self.added[self.call, span] = {name: x - before[name] for name, x in made.items() if x is not None}
