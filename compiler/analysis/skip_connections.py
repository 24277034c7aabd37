"""Find the skip connections of a captured graph: concatenations of a value with one that it is computed from.

    x ── down ──┬── down ── middle ── up ── cat ── up ──
                └─────────── skip ──────────┘

Of the two parts one, the skip, needs fewer weights, and none that the other does not need. This holds in UNets and in
transformers with long skips, and not for the halves of a rotated query or the tokens of two streams. Names play no
part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffc.compiler.analysis.stages import stages_of_nodes, stages_of_ports
from diffc.compiler.graph.body import body_of
from diffc.compiler.ir.program import Graph, Program

aten = torch.ops.aten


@dataclass(frozen=True)
class Skip:
    """Name the two nodes that are concatenated: ``up`` is on the long path, ``across`` on the short one."""

    up: str
    across: str


def skips(graph: Graph, programs: Sequence[Program]) -> list[Skip]:
    """List the skip connections, the outermost first; empty where a graph has none."""
    body, skips = body_of(graph), list[Skip]()
    stages = stages_of_nodes(body, graph, stages_of_ports(graph, programs))
    weights: dict[object, int] = {}  # those that a node is computed from, a bit for each
    for at, node in enumerate(body.graph.nodes):
        weights[node] = 1 << at if node.op == "get_attr" else 0
        for source in node.all_input_nodes:
            weights[node] |= weights[source]
        parts = node.all_input_nodes if node.target == aten.cat.default else []
        if len(parts) != 2 or any("latent" not in stages[part] for part in parts):
            continue
        across, up = sorted(parts, key=lambda part: weights[part].bit_count())
        if weights[across] != weights[up] and not weights[across] & ~weights[up]:
            skips.append(Skip(up.name, across.name))
    return skips[::-1]
