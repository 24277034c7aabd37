"""Measure what reusing features costs: how far it leads the latents astray in each evaluation, and how long it takes.

An evaluation that reuses a feature of an earlier one gives another output. What that does to the latents at the end is
found with the sampler's own arithmetic, every other output as it was: errors of single reuses, from one trajectory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from diffc.compiler.analysis.features import Feature
from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.calibration.run_program import request_of
from diffc.compiler.calibration.trajectory import Drawing
from diffc.compiler.feature_cache.apply_schedule import evaluations
from diffc.compiler.feature_cache.search import Way
from diffc.compiler.graph.body import body_of, needed
from diffc.compiler.graph.evaluate import Call, Executor, needed_for
from diffc.compiler.graph.lazy_weights import settle
from diffc.compiler.ir.program import Graph, Program, Value

aten = torch.ops.aten

LATENTS = "latents at the end"
"""What no value of a program is called."""

LONGEST = 8
"""Evaluations from the one that computes a feature to behind the last that reuses it."""

TIMED = 3
"""How many calls are timed; the fastest counts."""

Option = tuple[Feature, ...]
"""Features that a call reuses together."""

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Drift:
    """Hold the seconds of a call that computes all and of one that reuses each option, and what reusing costs.

    ``errors[option, at, source]`` is the change of the latents at the end where evaluation ``at`` reuses what
    ``source`` computed, as a part of their norm; infinity where that is too long ago. Errors of options that were
    reused in several evaluations at once are no more than the sum, to first order.
    """

    whole: float
    reusing: tuple[float, ...]
    errors: NDArray[np.float64]


def measure(program: Program, calls: Calls, calibration: Calibration) -> Drift:
    """Measure options on the trajectories of a calibration of the program, whose denoiser the calls are."""
    places = evaluations(program, [calls.name])
    with Executor(program) as executor:
        errors = [_errors(executor, places, calls, drawing) for drawing in calibration.drawings]
    feeds = next(sample.feeds for sample in calibration.samples if sample.graph == calls.name)
    return Drift(*calls.timed(feeds), np.mean(errors, axis=0))


class Calls:
    """Call a graph whole, which gives its features too, or given features of another call."""

    def __init__(self, graph: Graph, options: Sequence[Option]) -> None:
        self.name, self.options, self.body = graph.name, options, body_of(graph)
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.body.graph.nodes}
        self.features = list(dict.fromkeys(feature for option in options for feature in option))
        self.outputs = len(graph.outputs)
        self.module = self._module({}, self.features)
        self.plain = self._module({}, [])
        self.reusing = [self._module({self.nodes[f.node]: f for f in option}, []) for option in options]

    def whole(self, feeds: Sequence[torch.Tensor]) -> tuple[Tensors, dict[Feature, torch.Tensor]]:
        """Give the outputs, and what is kept of each feature."""
        made = list(self.module(*feeds))
        return made[: self.outputs], dict(zip(self.features, made[self.outputs :], strict=True))

    def given(self, at: int, feeds: Sequence[torch.Tensor], kept: Mapping[Feature, torch.Tensor]) -> Tensors:
        """Give the outputs of a call that reuses an option."""
        return list(self.reusing[at](*feeds, *(kept[feature] for feature in self.options[at])))

    def following(self, way: Way, program: Program) -> Call:
        """Call as a program's evaluations do that follow a way, one run after the other."""
        places, kept = list(evaluations(program, [self.name]).values()), dict[tuple[int, int], dict[Feature, Any]]()

        def call(step: int, feeds: Sequence[torch.Tensor]) -> Tensors:
            at = places[step]
            turn, reuse = step - places.index(at), way[at]
            if reuse is not None:
                return self.given(reuse[1], feeds, kept[reuse[0], turn])
            made, kept[at, turn] = self.whole(feeds)
            return made

        return call

    def timed(self, feeds: Sequence[torch.Tensor]) -> tuple[float, tuple[float, ...]]:
        """Time a whole call, and one for each option, in turns."""
        _, kept = self.whole(feeds)
        rounds = []
        with torch.no_grad():
            for _ in range(TIMED):
                start, seconds = time.perf_counter(), list[float]()
                for at in range(-1, len(self.options)):
                    _ = self.plain(*feeds) if at < 0 else self.given(at, feeds, kept)
                    seconds.append(time.perf_counter() - start)
                rounds.append(np.diff([0.0, *seconds]))
        whole, *reusing = map(float, np.min(rounds, axis=0))
        return whole, tuple(reusing)

    def _module(self, reused: Mapping[fx.Node, Feature], kept: Iterable[Feature]) -> fx.GraphModule:
        """Copy what is needed when some nodes are given, as new inputs, and others are kept, as new outputs."""
        graph, last = self.body.graph, self.body.graph.output_node()
        bases = [self.nodes[feature.base] for feature in reused.values() if feature.base]
        wanted = needed(graph, [last, *bases, *(self.nodes[f.node] for f in kept)], reused)
        made, env = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in graph.find_nodes(op="placeholder"):
            env[node] = made.node_copy(node)
        ports = {node: made.placeholder(f"kept_{node.name}") for node in reused}
        for node in graph.nodes:
            if node in reused:
                base = reused[node].base
                added = (aten.add.Tensor, (ports[node], env[self.nodes[base]])) if base else None
                env[node] = made.call_function(*added) if added else ports[node]
            elif node in wanted and node not in env and node is not last:
                env[node] = made.node_copy(node, env.__getitem__)
        found = [env[node] for node in last.args[0]]  # type: ignore[union-attr,index]
        for feature in kept:
            node, base = env[self.nodes[feature.node]], feature.base
            found.append(made.call_function(aten.sub.Tensor, (node, env[self.nodes[base]])) if base else node)
        made.output(tuple(found))
        module = fx.GraphModule(self.body, made)
        settle(module)
        return module


def _errors(executor: Executor, places: Mapping[int, int], calls: Calls, drawing: Drawing) -> NDArray[np.float64]:
    """Reuse every option at every evaluation from each of the few before it, one at a time."""
    samples = [sample.feeds for sample in drawing.samples if sample.graph == calls.name]
    feeds: dict[int, list[Sequence[torch.Tensor]]] = {}
    for at, each in zip(places.values(), samples, strict=True):
        feeds.setdefault(at, []).append(each)
    with torch.no_grad():
        made = {at: [calls.whole(each) for each in mine] for at, mine in feeds.items()}
        sampler = _Sampler(executor, places, drawing, {at: [out for out, _ in mine] for at, mine in made.items()})
        errors = np.full((len(calls.options), len(made), len(made)), np.inf)
        for at, source, option in np.ndindex(len(made), len(made), len(calls.options)):
            if 0 < at - source < LONGEST and len(made[source]) == len(made[at]):
                kept = [features for _, features in made[source]]
                outputs = [calls.given(option, *pair) for pair in zip(feeds[at], kept, strict=True)]
                errors[option, at, source] = sampler.error(at, outputs)
    return errors


class _Sampler:
    """Run a sampler's arithmetic on recorded outputs of the denoiser, down to its last latents, or else the output."""

    def __init__(
        self,
        executor: Executor,
        places: Mapping[int, int],
        drawing: Drawing,
        outputs: Mapping[int, list[Tensors]],
    ) -> None:
        self.executor, program = executor, executor.program
        steps = [at for at, op in enumerate(program.ops) if op.operator == "step"]
        last = [replace(program.ops[at], operator="linear", results=(Value(LATENTS),)) for at in steps[-1:]]
        self.end = LATENTS if last else program.outputs[0]
        self.results: dict[int, list[str]] = {}
        recorded = dict[str, torch.Tensor]()
        turns = {at: iter(each) for at, each in outputs.items()}
        for place, at in places.items():
            names = [value.name for value in program.ops[place].results]
            self.results.setdefault(at, []).extend(names)
            recorded |= zip(names, next(turns[at]), strict=True)
        _, arrays = request_of(program, drawing.prompt, drawing.seed)
        recorded |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.ops = needed_for([*program.ops[: steps[-1]], *last] if last else program.ops, [self.end], recorded)
        computed = [value.name for op in self.ops for value in op.results]
        self.values = recorded | executor.run(recorded, ops=self.ops, outputs=computed)

    def error(self, at: int, outputs: Sequence[Tensors]) -> float:
        """Return the change of the last latents where an evaluation has other outputs, relative to their norm."""
        replaced = dict(zip(self.results[at], (tensor for each in outputs for tensor in each), strict=True))
        changed = set(replaced)
        for op in self.ops:
            if changed.intersection(op.reads()):
                changed.update(value.name for value in op.results)
        values = {name: value for name, value in self.values.items() if name not in changed} | replaced
        latents, exact = self.executor.run(values, ops=self.ops, outputs=[self.end])[self.end], self.values[self.end]
        return float((latents - exact).norm() / exact.norm().clamp(min=1e-12))
