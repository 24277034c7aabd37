"""Plan how the layers of a bundle's graphs are quantized: data that passes rewrite.

A layer is a weight and the operators that read it, in whatever graphs: those with and without guidance share it. A
`Plan` starts with a `Scheme` for each layer and no decisions; the passes of ``diffc.passes.quantize`` choose ranges,
smooth outliers, and round. `diffc.compiler.quantization.apply_plan.applied` then writes the plan into the programs.
"""

from __future__ import annotations

import hashlib
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.calibration.observe import watch
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import CalibrationError
from diffc.compiler.graph.body import body_of, size
from diffc.compiler.graph.export import LAYER, type_of
from diffc.compiler.graph.lazy_weights import read
from diffc.compiler.ir.program import Graph, Program
from diffc.compiler.quantization.formats import Scheme
from diffc.compiler.quantization.layer import Layer, Site
from diffc.compiler.quantization.observers import Statistics
from diffc.compiler.quantization.refusals import Refusal, refusals
from diffc.compiler.text_table import text_table

aten = torch.ops.aten

KINDS = {
    aten.linear.default: "linear",
    aten.conv1d.default: "conv",
    aten.conv2d.default: "conv",
    aten.conv3d.default: "conv",
    aten.embedding.default: "embedding",
    aten.scaled_dot_product_attention.default: "attention",
}
"""The operators that are quantized."""

Tensors = tuple[torch.Tensor, ...]

FEWEST_ELEMENTS = 512
"""Weights of fewer elements stay as they are: there is nothing to save."""


@dataclass(frozen=True)
class Plan:
    """Hold the programs of a bundle, their calibration, a plan for each layer, and why techniques left layers alone."""

    programs: tuple[Program, ...]
    layers: tuple[Layer, ...]
    calibration: Calibration
    refusals: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        rows = [(layer.name, layer.kind, str(layer.scheme), layer.decided) for layer in self.layers]
        return text_table(("layer", "kind", "scheme", "decided"), rows)

    @staticmethod
    def of(programs: Sequence[Program], calibration: Calibration, scheme: Callable[[Layer], Scheme]) -> Plan:
        """Find the layers of the programs, each with its scheme."""
        layers = tuple(replace(layer, scheme=scheme(layer)) for layer in find_layers(programs))
        return Plan(tuple(programs), layers, calibration)

    @property
    def graphs(self) -> dict[str, Graph]:
        """Map the names of all graphs with weights to them."""
        return {graph.name: graph for program in self.programs for graph in program.graphs if size(graph)}

    def steps(self, layer: Layer) -> int:
        """Count the calls of a layer's graph in a trajectory; of several graphs, those of the one called most."""
        graphs = {site.graph for site in layer.sites}
        return max((sample.of for sample in self.calibration.samples if sample.graph in graphs), default=1)

    def mapped(self, change: Callable[[Layer], Layer], where: Callable[[Layer], bool] = lambda _: True) -> Plan:
        """Change some layers."""
        return replace(self, layers=tuple(change(layer) if where(layer) else layer for layer in self.layers))

    def refused(self, technique: str, reason: Callable[[Layer], str]) -> Plan:
        """Record why a technique leaves layers alone, as they are before it runs."""
        return replace(self, refusals=(*self.refusals, *refusals(technique, self.layers, reason)))

    def reasons(self, technique: str) -> str:
        """Return the reasons of a technique with the number of layers of each, the most frequent first."""
        counts = Counter(refusal.reason for refusal in self.refusals if refusal.technique == technique)
        return "; ".join(f"{count} layers: {reason}" for reason, count in counts.most_common())

    def watch(
        self,
        layers: Sequence[Layer],
        visit: Callable[[Layer, Tensors, torch.Tensor, Sample], None],
        samples: Callable[[Sample], bool] = lambda _: True,
    ) -> None:
        """Visit each call of layers in the samples, with its smoothed inputs and its output.

        Raises `CalibrationError` that names the layer and the step of an input with NaN or infinity.
        """
        for graph in self.graphs.values():
            at = {site.node: layer for layer in layers for site in layer.sites if site.graph == graph.name}
            recorded = [sample for sample in self.calibration.of(graph) if samples(sample)]
            if not at or not recorded:
                continue

            def seen(node: fx.Node, inputs: Tensors, output: torch.Tensor, sample: Sample, at: Any = at) -> None:
                layer = at[node.name]
                if not all(_is_finite(x) for x in inputs if x.is_floating_point()):
                    where = f"step {sample.step + 1} of {sample.of}"
                    fix = "keep the layer in float in a recipe, or calibrate with other prompts"
                    raise CalibrationError(f"NaN or infinity reaches {layer.name}", where=where, fix=fix)
                visit(layer, tuple(layer.smoothed(x) for x in inputs), output, sample)

            watch(graph, recorded, {name: _inputs(layer) for name, layer in at.items()}, seen)

    def statistics(self, layers: Sequence[Layer]) -> dict[str, list[Statistics]]:
        """Gather statistics of every input of layers, and last of a quantized output, by the layers' names."""
        gathered: dict[str, list[Statistics]] = {}

        def visit(layer: Layer, inputs: Tensors, output: torch.Tensor, sample: Sample) -> None:
            tensors = inputs if layer.scheme.output is None else (*inputs, output)
            if layer.name not in gathered:
                gathered[layer.name] = [Statistics(self.steps(layer), layer.axis) for _ in tensors]
            for statistics, x in zip(gathered[layer.name], tensors, strict=True):
                statistics.add(x, sample.nearest(statistics.steps))

        self.watch(layers, visit)
        return gathered


def _is_finite(x: torch.Tensor) -> bool:
    return all(bool(end.isfinite()) for end in x.aminmax())


def _inputs(layer: Layer) -> Sequence[int]:
    return (0, 1, 2) if layer.kind == "attention" else (0,)


def find_layers(programs: Sequence[Program]) -> list[Layer]:
    """List the layers of all graphs: operators of one kind that read one weight alone, and attention."""
    layers, constants = dict[tuple[str, str], Layer](), _Constants()
    for graph in {g.name: g for program in programs for g in program.graphs if size(g)}.values():
        body = body_of(graph)
        for node in body.graph.nodes:
            kind = KINDS.get(node.target)
            if kind is None:
                continue
            name, weight = _name(graph, node, kind, body, constants)
            if name is None or (weight is not None and weight.numel() < FEWEST_ELEMENTS):
                continue
            site = Site(graph.name, node.name)
            layer = layers.get((graph.component, name))
            if layer is not None:
                layers[graph.component, name] = replace(layer, sites=(*layer.sites, site))
                continue
            groups = node.args[6] if kind == "conv" and len(node.args) > 6 else 1
            options = tuple(node.args[3:]) if kind == "conv" else ()
            layers[graph.component, name] = Layer(
                f"{graph.component}.{name}", graph.component, kind, (site,), weight, groups=groups, options=options
            )
    return list(layers.values())


class _Constants:
    """Name weights that no checkpoint names, such as those that a pass folds: equal values alone have one name."""

    def __init__(self) -> None:
        self.names: dict[tuple[str, str, str], str] = {}

    def name(self, component: str, kind: str, target: str, weight: torch.Tensor) -> str:
        """Name a weight after its attribute, with a number where other values have that name already."""
        values = read(weight).detach().contiguous()
        digest = hashlib.sha256(repr(type_of(values)).encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
        names = (target, *(f"{target}_{at}" for at in range(2, len(self.names) + 3)))
        return self.names.setdefault(
            (component, kind, digest.hexdigest()), next(name for name in names if name not in self.names.values())
        )


def _name(
    graph: Graph, node: fx.Node, kind: str, body: fx.GraphModule, constants: _Constants
) -> tuple[str | None, torch.Tensor | None]:
    """Name a layer by its weight; attention by its module and place."""
    if kind == "attention":
        return node.name, None
    place = 0 if kind == "embedding" else 1
    source = node.args[place]
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return None, None
    readers: Any = source.users
    if any(KINDS.get(user.target) != kind or user.args[place] is not source for user in readers):
        return None, None
    target = str(source.target)
    weight = operator.attrgetter(target)(body)
    if LAYER in source.meta or weight.numel() < FEWEST_ELEMENTS:
        return source.meta.get(LAYER, target), weight
    return constants.name(graph.component, kind, target, weight), weight


def in_batches(layers: Sequence[Layer], gigabytes: Callable[[Layer], float], memory: float) -> Iterator[list[Layer]]:
    """Divide layers into batches that fit into ``memory`` gigabytes, each of one layer at least."""
    batch, used = list[Layer](), 0.0
    for layer in layers:
        needed = gigabytes(layer)
        if batch and used + needed > memory:
            yield batch
            batch, used = [], 0.0
        batch.append(layer)
        used += needed
    if batch:
        yield batch
