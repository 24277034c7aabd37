"""Try schedules that reuse features: sample the calibration's prompts with each, and compare the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from diffc.compiler.analysis.skip_connections import skips
from diffc.compiler.analysis.transformer_blocks import transformer
from diffc.compiler.calibration.calibrate import Calibration, RunSampler
from diffc.compiler.calibration.trajectory import Trajectory
from diffc.compiler.feature_cache.apply_schedule import Feature, Reuse, Schedule
from diffc.compiler.ir.program import Graph, Program
from diffc.compiler.metrics import psnr
from diffc.passes.cache.auto.cost import Calls, Costs, Option, measure
from diffc.passes.cache.auto.search import Candidate, Reuses, Trial, frontier

OPTIONS = 4
"""The number of features tried: skip connections, or spans of blocks."""

PROMPTS = 4
"""The number of prompts measured."""

PROBES = 8
"""The number of evaluations in which the growth of an error in later steps is measured."""

AROUND, SPREAD = 1, 7
"""The number of schedules tried on either side of the budget, and over all of the frontier."""

INTERVALS = (2, 3, 4, 5)
"""The intervals of the fixed schedules tried for comparison; a better one is built."""


def features_to_try(graph: Graph, programs: Sequence[Program]) -> list[Option]:
    """Name the features to try: values inside of some skip connections, or the sums that some spans of blocks add."""
    connections = skips(graph, programs)
    if connections:
        at = np.linspace(0, len(connections) - 1, min(OPTIONS, len(connections))).round().astype(int)
        return [(Feature(connections[each].up),) for each in dict.fromkeys(at.tolist())]
    blocks = transformer(graph, programs)
    count = len(blocks.blocks)
    spans = (range(count), range(count // 2, count), range(count // 2), range(count // 4, count - count // 4))
    return [blocks.features(span)[0] for span in dict.fromkeys(spans) if span]


def following(reuses: Reuses) -> Callable[[Program, Graph, int], Schedule]:
    """Return the scheduler of a measured schedule; another number of evaluations follows the nearest in time."""

    def follow(program: Program, graph: Graph, count: int) -> Schedule:
        options = features_to_try(graph, [program])
        at = np.linspace(0, len(reuses) - 1, count).round().astype(int).tolist()
        schedule, source = list[tuple[Reuse, ...]](), 0
        for place, there in enumerate(at):
            reuse = reuses[there] if place else None
            source = place if reuse is None else source
            schedule.append(() if reuse is None else tuple(Reuse(f, source) for f in options[reuse[1]]))
        return Schedule(schedule)

    return follow


class Trials:
    """Measure schedules of one program, each once."""

    def __init__(
        self,
        program: Program,
        graph: Graph,
        options: Sequence[Option],
        calibration: Calibration,
        run_sampler: RunSampler,
        finer: Program | None,
    ) -> None:
        self.program, self.options = program, options
        self.calibration, self.run_sampler, self.calls = calibration, run_sampler, Calls(graph, options)
        self.costs = measure(program, self.calls, self.calibration)
        self.count = self.costs.errors.shape[1]
        self.gains = self._gains(self.costs)
        self.finer = None if finer is None else calibration.rerun(finer, PROMPTS)
        self.known = dict[Reuses, Trial]()

    def tried(self, max_drop: float, min_psnr: float) -> list[Trial]:
        """Sample with the schedules of two frontiers around the budget, and with all fixed ones.

        The first frontier weighs each error by its measured growth in later steps, and adds errors up; it overrates
        early errors where there are many. The second leaves errors unweighted and adds their squares, as if they were
        independent.
        """
        measured, gained = self.costs.errors, self.costs.errors * self.gains[None, :, None]
        for errors, power in ((gained, 1), (measured, 2)):
            candidates = frontier(self.costs.full, self.costs.reusing, errors, power=power)
            low, high = 0, len(candidates) - 1
            while low < high:
                middle = (low + high) // 2
                if self._judged(candidates[middle], fixed=False).keeps(max_drop, min_psnr):
                    high = middle
                else:
                    low = middle + 1
            around = range(low - AROUND, low + AROUND + 1)
            spread = np.linspace(0, len(candidates) - 1, SPREAD).astype(int).tolist()
            for at in sorted({*around, *spread} & set(range(len(candidates)))):
                self._judged(candidates[at], fixed=False)
        for fixed in self._fixed():
            self._judged(fixed, fixed=True)
        return sorted(self.known.values(), key=lambda each: each.time)

    def _fixed(self) -> Iterator[Candidate]:
        """Reuse each option in all but every n-th evaluation."""
        for interval in INTERVALS:
            for option in range(len(self.options)):
                reuses = tuple((at - at % interval, option) if at % interval else None for at in range(self.count))
                yield Candidate(reuses, self._seconds(reuses), 0.0)

    def _seconds(self, reuses: Reuses) -> float:
        return sum(self.costs.full if each is None else self.costs.reusing[each[1]] for each in reuses)

    def _judged(self, candidate: Candidate, *, fixed: bool) -> Trial:
        """Sample the calibration's prompts with a schedule."""
        if candidate.reuses not in self.known:
            trajectories = self._trajectories(candidate.reuses, PROMPTS)
            time = candidate.seconds / (self.count * self.costs.full)
            near = _decibels(trajectories, self.calibration.trajectories)
            drop = None
            if self.finer is not None:
                drop = _decibels(self.calibration.trajectories, self.finer) - _decibels(trajectories, self.finer)
            self.known[candidate.reuses] = Trial(candidate.reuses, time, near, drop, fixed)
        return self.known[candidate.reuses]

    def _trajectories(self, reuses: Reuses, prompts: int) -> list[Trajectory]:
        return self.run_sampler(prompts, {self.calls.name: self.calls.following(reuses, self.program)})

    def _gains(self, costs: Costs) -> NDArray[np.float64]:
        """Measure the growth of an error in later evaluations: at some evaluations, and interpolate between them."""
        cheapest, trajectory = int(np.argmin(costs.reusing)), self.calibration.trajectories[:1]
        places = np.unique(np.linspace(1, self.count - 1, PROBES).round().astype(int))
        gains = []
        for at in places.tolist():
            reuses = tuple((place - 1, cheapest) if place == at else None for place in range(self.count))
            latents, reference = self._trajectories(reuses, 1)[0].latents, trajectory[0].latents
            error = float((latents - reference).norm() / reference.norm())
            gains.append(error / max(costs.errors[cheapest, at, at - 1], 1e-12))
        logs = np.interp(np.arange(self.count), places, np.log(np.maximum(gains, 1e-3)))
        return np.asarray(np.exp(logs))


def _decibels(trajectories: Sequence[Trajectory], references: Sequence[Trajectory]) -> float:
    """Return the PSNR of images, the mean over prompts."""
    return float(
        np.mean([psnr(a.output.numpy(), b.output.numpy()) for a, b in zip(trajectories, references, strict=True)])
    )
