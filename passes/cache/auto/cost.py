"""Measure the cost of reusing features: the error of the final latents for each evaluation, and the time of calls.

The output of an evaluation that reuses a feature of an earlier one has an error. Its effect on the final latents is
computed by the sampler's own arithmetic, with all other outputs as recorded: errors of single reuses, from one
trajectory.
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
from diffc.compiler.calibration.trajectory import Trajectory
from diffc.compiler.feature_cache.apply_schedule import evaluations
from diffc.compiler.graph.body import body_of, needed
from diffc.compiler.graph.evaluate import Call, Executor, needed_for
from diffc.compiler.graph.lazy_weights import materialize
from diffc.compiler.ir.program import Graph, Program, Value
from diffc.passes.cache.auto.search import Reuses

aten = torch.ops.aten

LATENTS = "latents at the end"
"""A name that no value of a program has."""

LONGEST = 8
"""The most evaluations between one that computes a feature and one that reuses it, plus one."""

TIMED = 3
"""The number of timed calls, of which the fastest counts."""

Option = tuple[Feature, ...]
"""Features that a call reuses together."""

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Costs:
    """Hold the seconds of a full call and of one that reuses each option, and the errors of reusing.

    ``errors[option, at, source]`` is the change of the final latents where evaluation ``at`` reuses a feature of
    ``source``, relative to their norm; infinity where that is too long ago. To first order the error of several reuses
    is at most the sum of theirs.
    """

    full: float
    reusing: tuple[float, ...]
    errors: NDArray[np.float64]


def measure(program: Program, calls: Calls, calibration: Calibration) -> Costs:
    """Measure options on the trajectories of a calibration of the program, whose denoiser the calls are."""
    places = evaluations(program, [calls.name])
    with Executor(program) as executor:
        errors = [_errors(executor, places, calls, trajectory) for trajectory in calibration.trajectories]
    feeds = next(sample.feeds for sample in calibration.samples if sample.graph == calls.name)
    return Costs(*calls.timed(feeds), np.mean(errors, axis=0))


class Calls:
    """Call a graph in full, which also returns its features, or with features of another call."""

    def __init__(self, graph: Graph, options: Sequence[Option]) -> None:
        self.name, self.options, self.body = graph.name, options, body_of(graph)
        self.nodes: dict[str, fx.Node] = {node.name: node for node in self.body.graph.nodes}
        self.features = list(dict.fromkeys(feature for option in options for feature in option))
        self.outputs = len(graph.outputs)
        self.module = self._module({}, self.features)
        self.plain = self._module({}, [])
        self.reusing = [self._module({self.nodes[f.node]: f for f in option}, []) for option in options]

    def full(self, feeds: Sequence[torch.Tensor]) -> tuple[Tensors, dict[Feature, torch.Tensor]]:
        """Compute the outputs and the value of each feature."""
        values = list(self.module(*feeds))
        return values[: self.outputs], dict(zip(self.features, values[self.outputs :], strict=True))

    def reuse(self, at: int, feeds: Sequence[torch.Tensor], features: Mapping[Feature, torch.Tensor]) -> Tensors:
        """Compute the outputs of a call that reuses an option."""
        return list(self.reusing[at](*feeds, *(features[feature] for feature in self.options[at])))

    def following(self, reuses: Reuses, program: Program) -> Call:
        """Return a replacement of the graph that reuses features by a schedule, run after run."""
        places, features = list(evaluations(program, [self.name]).values()), dict[tuple[int, int], dict[Feature, Any]]()

        def call(step: int, feeds: Sequence[torch.Tensor]) -> Tensors:
            at = places[step]
            turn, reuse = step - places.index(at), reuses[at]
            if reuse is not None:
                return self.reuse(reuse[1], feeds, features[reuse[0], turn])
            outputs, features[at, turn] = self.full(feeds)
            return outputs

        return call

    def timed(self, feeds: Sequence[torch.Tensor]) -> tuple[float, tuple[float, ...]]:
        """Time a full call and one for each option, alternating."""
        _, features = self.full(feeds)
        rounds = []
        with torch.no_grad():
            for _ in range(TIMED):
                start, seconds = time.perf_counter(), list[float]()
                for at in range(-1, len(self.options)):
                    _ = self.plain(*feeds) if at < 0 else self.reuse(at, feeds, features)
                    seconds.append(time.perf_counter() - start)
                rounds.append(np.diff([0.0, *seconds]))
        full, *reusing = map(float, np.min(rounds, axis=0))
        return full, tuple(reusing)

    def _module(self, reused: Mapping[fx.Node, Feature], returned: Iterable[Feature]) -> fx.GraphModule:
        """Copy the nodes needed when some nodes are new inputs and others new outputs."""
        graph, last = self.body.graph, self.body.graph.output_node()
        bases = [self.nodes[feature.base] for feature in reused.values() if feature.base]
        computed = needed(graph, [last, *bases, *(self.nodes[f.node] for f in returned)], reused)
        copy, env = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in graph.find_nodes(op="placeholder"):
            env[node] = copy.node_copy(node)
        ports = {node: copy.placeholder(f"kept_{node.name}") for node in reused}
        for node in graph.nodes:
            if node in reused:
                base = reused[node].base
                added = (aten.add.Tensor, (ports[node], env[self.nodes[base]])) if base else None
                env[node] = copy.call_function(*added) if added else ports[node]
            elif node in computed and node not in env and node is not last:
                env[node] = copy.node_copy(node, env.__getitem__)
        outputs = [env[node] for node in last.args[0]]  # type: ignore[union-attr,index]
        for feature in returned:
            node, base = env[self.nodes[feature.node]], feature.base
            outputs.append(copy.call_function(aten.sub.Tensor, (node, env[self.nodes[base]])) if base else node)
        copy.output(tuple(outputs))
        module = fx.GraphModule(self.body, copy)
        materialize(module)
        return module


def _errors(executor: Executor, places: Mapping[int, int], calls: Calls, trajectory: Trajectory) -> NDArray[np.float64]:
    """Reuse every option at every evaluation from each of the few before it, one at a time."""
    samples = [sample.feeds for sample in trajectory.samples if sample.graph == calls.name]
    feeds: dict[int, list[Sequence[torch.Tensor]]] = {}
    for at, inputs in zip(places.values(), samples, strict=True):
        feeds.setdefault(at, []).append(inputs)
    with torch.no_grad():
        outputs_of = {at: [calls.full(inputs) for inputs in mine] for at, mine in feeds.items()}
        sampler = _Sampler(
            executor, places, trajectory, {at: [out for out, _ in mine] for at, mine in outputs_of.items()}
        )
        errors = np.full((len(calls.options), len(outputs_of), len(outputs_of)), np.inf)
        for at, source, option in np.ndindex(len(outputs_of), len(outputs_of), len(calls.options)):
            if 0 < at - source < LONGEST and len(outputs_of[source]) == len(outputs_of[at]):
                values = [features for _, features in outputs_of[source]]
                outputs = [calls.reuse(option, *pair) for pair in zip(feeds[at], values, strict=True)]
                errors[option, at, source] = sampler.error(at, outputs)
    return errors


class _Sampler:
    """Run a sampler's arithmetic on recorded outputs of the denoiser, down to its last latents, or else the output."""

    def __init__(
        self,
        executor: Executor,
        places: Mapping[int, int],
        trajectory: Trajectory,
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
        _, arrays = request_of(program, trajectory.prompt, trajectory.seed)
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
