"""Calibrate a program on its own trajectories: record the inputs of its graphs, with sampler and guidance as compiled.

Nothing but the checkpoint is needed: noise is random, and prompts are built in unless a file has others. Trajectories
are stored in the build cache, one by one, so that an interrupted calibration resumes.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from weakref import WeakValueDictionary

import torch

from diffc.compiler.calibration.prompts import PROMPTS
from diffc.compiler.calibration.run_program import ProgramRun
from diffc.compiler.calibration.trajectory import Sample, Trajectory, _read, _written
from diffc.compiler.errors import DiffcWarning, Progress
from diffc.compiler.graph.evaluate import Call
from diffc.compiler.ir.program import Graph, Program
from diffc.compiler.text_table import text_table
from diffc.runtime.disk_cache import Cache

WORK = 6e12
"""Multiply-adds after which a `Calibrator` starts no further built-in prompt, unless it has another ``work``."""


RunSampler = Callable[[int, Mapping[str, Call]], list[Trajectory]]
"""A function that runs the first prompts, and computes the outputs of some graphs in another manner."""


@dataclass(frozen=True)
class Calibration:
    """Hold trajectories of one program, its graphs' samples, and a digest of program, prompts, seed and weights."""

    program: Program
    samples: tuple[Sample, ...]
    trajectories: tuple[Trajectory, ...]
    seed: int
    digest: str
    tokenizers: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        title = (
            f"{self.program.name}: {len(self.trajectories)} prompts from seed {self.seed}, digest {self.digest[:12]}"
        )
        counts = Counter(sample.graph for sample in self.samples)
        calls = {sample.graph: sample.of for sample in self.samples}
        rows = [(graph, str(calls[graph]), str(count)) for graph, count in counts.items()]
        return f"{title}\n{text_table(('graph', 'calls', 'samples'), rows)}"

    @property
    def prompts(self) -> tuple[str, ...]:
        """List the prompts."""
        return tuple(trajectory.prompt for trajectory in self.trajectories)

    def of(self, graph: Graph) -> list[Sample]:
        """List the samples of one graph."""
        return [sample for sample in self.samples if sample.graph == graph.name]

    def rerun(
        self, program: Program, prompts: int, instead: Mapping[str, Call] = MappingProxyType({})
    ) -> list[Trajectory]:
        """Run another program for the first prompts, from the same noise; ``instead`` replaces some of its graphs."""
        with self.sampling(program) as run_sampler:
            return run_sampler(prompts, instead)

    @contextmanager
    def sampling(self, program: Program) -> Iterator[RunSampler]:
        """Yield a function that runs another program as `rerun` does; its weights stay in memory between calls."""
        run = ProgramRun(program, self.tokenizers)

        def run_sampler(prompts: int, instead: Mapping[str, Call]) -> list[Trajectory]:
            return [
                run.trajectory(each.prompt, each.seed, at, instead)
                for at, each in enumerate(self.trajectories[:prompts])
            ]

        with run.ready:
            yield run_sampler

    def few(self, count: int) -> Calibration:
        """Return a calibration of at most ``count`` samples per graph, chosen at random from all steps and prompts."""
        random, indices = torch.Generator().manual_seed(self.seed), set[int]()
        for name in dict.fromkeys(sample.graph for sample in self.samples):
            at = [n for n, sample in enumerate(self.samples) if sample.graph == name]
            indices |= {at[n] for n in torch.randperm(len(at), generator=random)[:count]}
        return replace(self, samples=tuple(self.samples[n] for n in sorted(indices)))


Calibrate = Callable[[Program], Calibration]
"""Return the calibration of a program, as a `Calibrator` does."""


@dataclass(frozen=True)
class Calibrator:
    """Calibrate the programs of one build: run each prompt, and record the inputs of every graph with weights.

    ``tokenizers`` are the contents of each ``tokenizer.json``. Without ``prompts`` the built-in ones are run until
    ``work`` multiply-adds are done. The n-th prompt is run with ``seed`` plus n. Trajectories are stored in ``cache``
    under ``source``, a digest of the weights; without either nothing is stored.
    """

    tokenizers: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    prompts: tuple[str, ...] = ()
    seed: int = 0
    source: str = ""
    cache: Cache | None = None
    work: float = WORK
    progress: Progress = lambda _: None
    _latest: WeakValueDictionary[str, Calibration] = field(
        default_factory=WeakValueDictionary, init=False, repr=False, compare=False
    )

    def __call__(self, program: Program) -> Calibration:
        """Run the program for each prompt. A calibration that is still in use is returned again.

        Raises `CalibrationError` where a graph computes NaN or infinity.
        """
        calibration = self._latest.get(str(program))
        if calibration is None:
            calibration = self._latest[str(program)] = self._calibrate(program)
        return calibration

    def _calibrate(self, program: Program) -> Calibration:
        run = ProgramRun(program, self.tokenizers)
        prompts = self.prompts or PROMPTS[: max(1, math.ceil(self.work / max(1, run.work)))]
        with run.ready:
            trajectories = tuple(self._trajectory(run, prompt, at) for at, prompt in enumerate(prompts))
        samples = tuple(sample for trajectory in trajectories for sample in trajectory.samples)
        digest = hashlib.sha256(f"{program}{self.seed}{self.source}".encode())
        for prompt in prompts:
            digest.update(prompt.encode() + b"\0")
        return Calibration(program, samples, trajectories, self.seed, digest.hexdigest(), self.tokenizers)

    def _trajectory(self, run: ProgramRun, prompt: str, at: int) -> Trajectory:
        """Read the trajectory of the ``at``-th prompt from the cache, or run it and store it there."""
        cache, seed = self.cache if self.source else None, self.seed + at
        key = hashlib.sha256(json.dumps([str(run.program), self.source, prompt, seed]).encode()).hexdigest()
        stored = _read(cache.get(key), prompt, seed, at) if cache else None
        if stored is not None:
            return stored
        self.progress(f"calibrate {at + 1}: {prompt}")
        with warnings.catch_warnings():
            if not self.prompts:  # they were not written for this model
                warnings.simplefilter("ignore", DiffcWarning)
            trajectory = run.trajectory(prompt, seed, at)
        if cache:
            cache.put(key, _written(trajectory))
        return trajectory
