"""Run the compiled program's own trajectory, to see what its graphs are given: sampler, steps and guidance as compiled.

Nothing but the checkpoint is needed: noise is drawn, prompts are built in unless a file gives others. What a prompt's
trajectory gave is kept in the cache of builds, so that an interrupted calibration resumes.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch

from diffc.compiler.calibration.prompts import PROMPTS
from diffc.compiler.calibration.run_program import ProgramRun
from diffc.compiler.calibration.trajectory import Drawing, Sample, _read, _written
from diffc.compiler.errors import DiffcWarning, Progress
from diffc.compiler.graph.evaluate import Call
from diffc.compiler.ir.program import Graph, Program
from diffc.runtime.disk_cache import Cache

WORK = 6e12
"""Multiply-adds after which no further prompt is started."""


Draw = Callable[[int, Mapping[str, Call]], list[Drawing]]
"""Draws the first prompts, with something else instead of some graphs."""


@dataclass(frozen=True)
class Calibration:
    """Hold the samples of some trajectories of one program, and a digest of what they were made from."""

    program: Program
    samples: tuple[Sample, ...]
    drawings: tuple[Drawing, ...]
    seed: int
    digest: str
    tokenizers: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def prompts(self) -> tuple[str, ...]:
        """List what was drawn."""
        return tuple(drawing.prompt for drawing in self.drawings)

    def of(self, graph: Graph) -> list[Sample]:
        """List the samples of one graph."""
        return [sample for sample in self.samples if sample.graph == graph.name]

    def drawn(
        self, program: Program, prompts: int, instead: Mapping[str, Call] = MappingProxyType({})
    ) -> list[Drawing]:
        """Draw the first prompts, from the same noise, with another program, or with ``instead`` of some graphs."""
        with self.drawing(program) as draw:
            return draw(prompts, instead)

    @contextmanager
    def drawing(self, program: Program) -> Iterator[Draw]:
        """Give what draws with another program as `drawn` does, however often: its graphs are made ready once."""
        run = ProgramRun(program, self.tokenizers)

        def draw(prompts: int, instead: Mapping[str, Call]) -> list[Drawing]:
            return [run.draw(each.prompt, each.seed, at, instead) for at, each in enumerate(self.drawings[:prompts])]

        with run.ready:
            yield draw

    def few(self, count: int) -> Calibration:
        """Keep ``count`` samples of each graph, or all it has, drawn from all steps and prompts alike."""
        random, kept = torch.Generator().manual_seed(self.seed), set[int]()
        for name in dict.fromkeys(sample.graph for sample in self.samples):
            at = [n for n, sample in enumerate(self.samples) if sample.graph == name]
            kept |= {at[n] for n in torch.randperm(len(at), generator=random)[:count]}
        return replace(self, samples=tuple(self.samples[n] for n in sorted(kept)))


Calibrate = Callable[[Program], Calibration]
"""Give the trajectories of a program, as `calibrate` does."""


def calibrate(
    program: Program,
    tokenizers: Mapping[str, bytes],
    *,
    prompts: Sequence[str] = (),
    seed: int = 0,
    source: str = "",
    cache: Cache | None = None,
    progress: Progress = lambda _: None,
) -> Calibration:
    """Draw each prompt with the program, and keep what every graph with weights was given.

    ``source`` is a digest of the weights; without it nothing is kept in the cache. Built-in prompts end when much work
    was done, prompts of a file do not. Raises `CalibrationError` where a graph gives NaN or infinity.
    """
    run = ProgramRun(program, tokenizers)
    texts = tuple(prompts or PROMPTS[: max(1, math.ceil(WORK / max(1, run.work)))])
    drawings, digest = list[Drawing](), hashlib.sha256(f"{program}{seed}{source}".encode())
    with run.ready:
        for at, prompt in enumerate(texts):
            key = hashlib.sha256(json.dumps([str(program), source, prompt, seed + at]).encode()).hexdigest()
            found = _read(cache.get(key), prompt, seed + at, at) if cache and source else None
            if found is None:
                progress(f"calibrate {at + 1}: {prompt}")
                with warnings.catch_warnings():
                    if not prompts:  # nobody wrote them for this model
                        warnings.simplefilter("ignore", DiffcWarning)
                    found = run.draw(prompt, seed + at, at)
                if cache and source:
                    cache.put(key, _written(found))
            drawings.append(found)
            digest.update(prompt.encode() + b"\0")
    samples = tuple(sample for drawing in drawings for sample in drawing.samples)
    return Calibration(program, samples, tuple(drawings), seed, digest.hexdigest(), tokenizers)
