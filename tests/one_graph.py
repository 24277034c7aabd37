"""Plan the quantization of a module of one's own: one graph, and samples of it that a test makes up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils import _pytree as pytree

from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.export import export, type_of
from diffc.compiler.graph.lazy_weights import materialize
from diffc.compiler.ir.program import Graph, Op, Program, Value
from diffc.compiler.quantization.formats import parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan, Scheme

Tensors = tuple[torch.Tensor, ...]


def plan_of(module: nn.Module, feeds: Sequence[Tensors], weight: str, activation: str = "float") -> Plan:
    """Make a plan in which every layer has one scheme, and each of ``feeds`` is what one step gives the module."""
    body = export("net", module.eval().requires_grad_(False), feeds[0])
    inputs = tuple(Value(f"x{at}", type_of(x)) for at, x in enumerate(feeds[0]))
    graph = Graph("net", inputs, (Value("y"),), body, "net")
    program = Program("main", graphs=(graph,), ops=tuple(Op("net") for _ in feeds))
    samples = tuple(Sample("net", step, len(feeds), 0, given) for step, given in enumerate(feeds))
    scheme = Scheme(parse_spec(weight), parse_spec(activation))
    return Plan.of((program,), Calibration(program, samples, ("",), 0, ""), lambda _: scheme)


def layer_of(plan: Plan) -> Layer:
    """Give the only layer of a plan."""
    (layer,) = plan.layers
    return layer


def run(programs: Sequence[Program], feeds: Sequence[Tensors]) -> list[torch.Tensor]:
    """Compute what the graph gives for each feed."""
    module = body_of(programs[0].graphs[0])
    materialize(module)
    return [pytree.tree_leaves(module(*given))[0] for given in feeds]


def signal_to_noise(made: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Give 10 log10 of the power of what is wanted over that of the difference, in dB."""
    a, b = (torch.cat([x.flatten() for x in xs]).double() for xs in (made, wanted))
    return float(10 * torch.log10(b.square().sum() / (a - b).square().sum()))
