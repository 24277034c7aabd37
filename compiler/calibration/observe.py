"""Run the samples of a graph again, and observe the values at its nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.lazy_weights import materialized
from diffc.compiler.ir.program import Graph

Visit = Callable[[fx.Node, tuple[Any, ...], Any, Sample], None]
"""A function of a node, the values of some of its arguments in one call, and its result."""


def watch(graph: Graph, samples: Sequence[Sample], nodes: Mapping[str, Sequence[int]], visit: Visit) -> None:
    """Run the samples of a graph again, and call ``visit`` at some of its nodes; no values are stored."""
    module = body_of(graph)
    watcher = _Watcher(module, nodes, visit)
    with materialized(module), torch.no_grad():
        for sample in samples:
            watcher.sample = sample
            watcher.run(*sample.feeds)


class _Watcher(fx.Interpreter):
    sample: Sample

    def __init__(self, module: fx.GraphModule, nodes: Mapping[str, Sequence[int]], visit: Visit) -> None:
        super().__init__(module)
        self.nodes, self.visit = nodes, visit

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.name in self.nodes:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.visit(n, tuple(args[at] if at < len(args) else None for at in self.nodes[n.name]), result, self.sample)
        return result
