"""Choose by dynamic programming which steps refresh a cached feature, and correct it in each step that reuses it.

Paper: Liu et al., "CacheQuant: Comprehensively Accelerated Diffusion Models", CVPR 2025,
       https://arxiv.org/abs/2503.01323 (the schedule, and the correction of the cache's error)

Before (a UNet):
    y0 = unet(x0)
    x1 = linear(x0, y0)
    y1 = unet(x1)

After (interval=2):
    h0 = outer_down(x0)
    d0 = deep(h0)
    y0 = outer_up(h0, d0)
    x1 = linear(x0, y0)
    h1 = outer_down(x1)
    d1 = corrected(d0, factor, term)
    y1 = outer_up(h1, d1)

The steps are divided into groups, on average ``interval`` long and from half to twice that; the first of a group
refreshes. The division has the smallest sum of the features' distances from the first of their group, in the program's
own trajectory. A step that reuses corrects each channel of the first feature by least squares. The feature is that of
DeepCache, or in a transformer the sum of the residuals of the blocks in its middle. The error of quantization is
corrected by the technique decoupled_error_correction: a cached program is calibrated with its cache. Steps are
evaluations of the denoiser.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import torch
from torch import fx

from diffc.compiler.analysis.skip_connections import skips
from diffc.compiler.analysis.stages import denoisers
from diffc.compiler.analysis.transformer_blocks import isotropic
from diffc.compiler.calibration.calibrate import Calibrate, Calibration
from diffc.compiler.calibration.observe import watch
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import PassError
from diffc.compiler.feature_cache.apply_schedule import Feature, Reuse, Schedule, cached, check_interval, evaluations
from diffc.compiler.ir.program import Graph, Program, Table
from diffc.compiler.quantization.observers import Lines


def cachequant(
    programs: Sequence[Program],
    calibrated: Calibrate,
    *,
    interval: int = 5,
    branch: int = 0,
    span: float = 0.75,
    correct: bool = True,
) -> tuple[Program, ...]:
    """Refresh in one of ``interval`` steps on average, where it is best; ``correct`` channels in the others.

    In a UNet the levels inside of skip connection ``branch`` are reused, in a transformer the residuals of the part
    ``span`` of its blocks. Raises `PassError` for another graph, and for a schedule or branch that the program lacks.
    """
    if interval < 1 or not 0 < span <= 1:
        fix = "give an interval of 1 or more, and a part of the blocks from 0 to 1"
        raise PassError(f"cachequant: interval={interval}, span={span:g}", fix=fix)

    def follow(program: Program, graph: Graph, count: int) -> Schedule:
        check_interval("cachequant", interval, program, count)
        if interval == 1:
            return Schedule([()] * count)
        features = _features(graph, program, branch, span)
        pairs = _Pairs(graph, program, features, 2 * interval)
        pairs.look(calibrated(program))
        first = _parted(pairs.steps, interval, pairs.distance)

        def reuses(at: int) -> tuple[Reuse, ...]:
            source = first.get(at, at)
            corrections = [pairs.correction(f, source, at) if correct and source != at else None for f in features]
            pairs_of_reuse = zip(features, corrections, strict=True)
            return tuple(Reuse(feature, source, each) for feature, each in pairs_of_reuse if source != at)

        return Schedule(map(reuses, range(count)))

    return cached(programs, follow)


def _features(graph: Graph, program: Program, branch: int, span: float) -> tuple[Feature, ...]:
    """Find the features to reuse: inside of a skip connection, or else in the middle of a transformer."""
    connections = skips(graph, [program])
    if connections and not 0 <= branch < len(connections):
        what = f"cachequant: branch {branch} of {len(connections)} skip connections"
        raise PassError(what, where=graph.name, fix=f"give a branch from 0, the cheapest, to {len(connections) - 1}")
    if connections:
        return (Feature(connections[branch].up),)
    blocks = isotropic(graph, [program], "cachequant")
    number = max(1, round(span * len(blocks.blocks)))
    begin = (len(blocks.blocks) - number) // 2
    (features,) = blocks.features(range(begin, begin + number))
    return features


def _parted(steps: Sequence[int], interval: int, distance: dict[tuple[int, int], float]) -> dict[int, int]:
    """Map steps to the first of their groups: the partition with the smallest sum of distances from the first.

    There are as many groups as intervals, each half to twice as long.
    """
    least, most, number = max(1, interval // 2), 2 * interval, -(-len(steps) // interval)

    @cache
    def best(begin: int, groups: int) -> tuple[float, tuple[int, ...]]:
        """Return the smallest sum for the steps from the place ``begin`` on, and the places where its groups begin."""
        if groups == 0 or begin >= len(steps):
            return (0.0 if groups == 0 and begin == len(steps) else float("inf")), ()
        candidates = [(float("inf"), tuple[int, ...]())]
        for end in range(begin + least, min(begin + most, len(steps)) + 1):
            rest, others = best(end, groups - 1)
            mine = sum(distance[steps[begin], steps[at]] for at in range(begin + 1, end))
            candidates.append((mine + rest, (begin, *others)))
        return min(candidates)

    _, begins = best(0, number)
    return {step: steps[max(begin for begin in begins if begin <= at)] for at, step in enumerate(steps)}


class _Pairs:
    """Compare features of two steps that are less than ``reach`` apart, over prompts, guidance branches and places.

    ``distance`` is the mean of the absolute differences, relative to that of the features. ``lines`` make the
    later step's channels of the earlier's.
    """

    def __init__(self, graph: Graph, program: Program, features: Sequence[Feature], reach: int) -> None:
        self.graph, self.features, self.reach = graph, features, reach
        names = [each.name for each in denoisers([program])]
        called = evaluations(program, names).items()
        self.calls = [step for at, step in called if program.ops[at].operator == graph.name]
        self.steps = sorted(set(self.calls))
        self.distance = defaultdict[tuple[int, int], float](float)
        self.lines = defaultdict[tuple[Feature, int, int], Lines](Lines)
        self.shapes = dict[Feature, tuple[int, ...]]()
        self.kept_rows = dict[tuple[Feature, int, int], torch.Tensor]()
        self.seen = dict[str, torch.Tensor]()

    def look(self, calibration: Calibration) -> None:
        """See all trajectories; features are kept as long as they are within reach."""
        names = {name for feature in self.features for name in (feature.node, feature.base) if name}

        def visit(node: fx.Node, _: object, output: torch.Tensor, sample: Sample) -> None:
            self.seen[node.name] = output
            if len(self.seen) == len(names):
                for feature in self.features:
                    self._add(feature, sample.step)
                self.seen.clear()

        watch(self.graph, calibration.of(self.graph), dict.fromkeys(names, ()), visit)

    def _add(self, feature: Feature, call: int) -> None:
        value, step = self.seen[feature.node].float(), self.calls[call]
        if feature.base:
            value = value - self.seen[feature.base].float()
        axis = 1 if value.dim() == 4 else value.dim() - 1
        self.shapes[feature] = tuple(size if at == axis else 1 for at, size in enumerate(value.shape))
        rows, lane = value.movedim(axis, 0).flatten(1), self.calls[:call].count(step)
        self.kept_rows = {
            key: each for key, each in self.kept_rows.items() if 0 < step - key[1] < self.reach or key[1] == step
        }
        for (feature_before, before, theirs), old in self.kept_rows.items():
            if feature_before == feature and theirs == lane and before < step:
                self.distance[before, step] += float((rows - old).abs().mean() / rows.abs().mean())
                self.lines[feature, before, step].add(old, rows)
        self.kept_rows[feature, step, lane] = rows

    def correction(self, feature: Feature, before: int, step: int) -> tuple[Table, Table]:
        """Fit a factor and a term for each channel by least squares; the factor is 1 where a channel is constant."""
        line, shape = self.lines[feature, before, step], self.shapes[feature]
        factor = line.factor()
        return tuple(Table.of(each.float().reshape(shape).numpy()) for each in (factor, line.term(factor)))  # type: ignore[return-value]
