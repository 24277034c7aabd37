"""A graph with its layers written into it computes what `Layer.apply` does, for every field, kind and scheme."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.ir.program import Op, Ref, Value
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, layer_of, plan_of
from tests.tolerances import GRAPH

STEPS = 3


class Eager(fx.Interpreter):
    """Run the float graph of a plan, with `Layer.apply` in place of the operators of its layers."""

    def __init__(self, plan: Plan, sample: Sample) -> None:
        super().__init__(body_of(plan.programs[0].graphs[0]))
        self.layers = {site.node: layer for layer in plan.layers for site in layer.sites}
        self.sample = sample

    def run_node(self, n: fx.Node) -> Any:
        """Apply a layer, or run any other node."""
        layer = self.layers.get(n.name)
        if layer is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if layer.kind == "attention":
            return layer.apply(*args, sample=self.sample, **kwargs)
        if layer.kind == "embedding":
            return layer.apply(args[1], sample=self.sample)
        return layer.apply(args[0], sample=self.sample, bias=args[2] if len(args) > 2 else None)


def by_layers(plan: Plan) -> list[torch.Tensor]:
    """Compute the output of each sample eagerly."""
    with torch.no_grad():
        return [pytree.tree_leaves(Eager(plan, sample).run(*sample.feeds))[0] for sample in plan.calibration.samples]


def by_graph(plan: Plan) -> list[torch.Tensor]:
    """Compute the output of each sample with the graph that the plan becomes, called with its row of scales."""
    (program,) = applied(plan)
    (graph,), ops, values = program.graphs, list[Op](), dict[str, torch.Tensor]()
    samples = iter(plan.calibration.samples)
    for op in program.ops:
        if op.operator == graph.name:
            sample = next(samples)
            feeds = {f"{port.name}_{sample.step}": x for port, x in zip(graph.inputs, sample.feeds, strict=False)}
            values |= feeds
            refs = zip((port.name for port in graph.inputs), map(Ref, feeds), strict=False)
            op = replace(op, attrs=(*refs, *op.attrs), results=(Value(f"y_{sample.step}"),))
        ops.append(op)
    outputs = tuple(f"y_{sample.step}" for sample in plan.calibration.samples)
    return list(evaluate(replace(program, ops=tuple(ops), outputs=outputs), values))


def assert_same(plan: Plan) -> None:
    """Compare the two, which round alike but for the order of sums."""
    for written, eager in zip(by_graph(plan), by_layers(plan), strict=True):
        assert (written - eager).abs().max() <= GRAPH * eager.abs().max()


class Kinds(nn.Module):
    """Apply layers of every kind that has a weight to views of one input [2, 16, 64]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.without_bias = nn.Linear(64, 24), nn.Linear(64, 24, bias=False)
        self.conv1d = nn.Conv1d(16, 12, 3, dilation=2)
        self.conv2d, self.in_groups = nn.Conv2d(16, 12, 3, stride=2, padding=1), nn.Conv2d(16, 32, 3, groups=4)
        self.conv3d = nn.Conv3d(16, 12, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Concatenate the outputs of the layers."""
        image, video = x.reshape(2, 16, 8, 8), x.reshape(2, 16, 4, 4, 4)
        of_image = [self.conv2d(image), self.in_groups(image)]
        outputs = [self.linear(x), self.without_bias(x), self.conv1d(x), *of_image, self.conv3d(video)]
        return torch.cat([y.flatten() for y in outputs])


def feeds() -> list[Tensors]:
    """Sample an input for each step, larger from step to step."""
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(2, 16, 64, generator=random) * (step + 1),) for step in range(STEPS)]


@pytest.fixture(scope="module")
def kinds() -> Plan:
    """Plan the layers of every kind, in float."""
    plan = plan_of(Kinds(), feeds(), "float")
    assert len(plan.layers) == 6
    return plan


def planned(plan: Plan, weight: str, activation: str, of_convolutions: str = "") -> Plan:
    """Choose the schemes of a plan, and set ranges; the weights are not rounded yet."""
    specs = {"linear": activation, "conv": of_convolutions or activation}

    def with_scheme(layer: Layer) -> Layer:
        return replace(layer, scheme=Scheme(parse_spec(weight), parse_spec(specs[layer.kind])))

    return calibrate_ranges(plan.mapped(with_scheme), by="minmax")


SCHEMES = (
    ("int8:channel", "float", "float"),
    ("int8:tensor", "int8:token", "int8:tensor"),
    ("uint4:group=16", "int4:group=16:dynamic", "uint8:tensor"),
    ("int4:group=8:scale=uint4", "int8:tensor:step", "int8:tensor:step"),
    ("int4:group=16:scale=float16", "int8:tensor:dynamic", "int8:tensor:dynamic"),
    ("e4m3:channel", "e4m3:token", "e4m3:tensor"),
    ("nvfp4", "nvfp4:dynamic", "e4m3:tensor"),
    ("mxfp4", "mxfp4:dynamic", "float"),
)


@pytest.mark.parametrize("scheme", SCHEMES, ids=" ".join)
def test_schemes_of_layers_with_weights(kinds: Plan, scheme: tuple[str, str, str]) -> None:
    assert_same(round_to_nearest(planned(kinds, *scheme)))


def smoothed(layer: Layer) -> Layer:
    """Smooth."""
    assert layer.weight is not None
    return replace(layer, smoothing=(torch.rand(layer.weight.shape[1]) + 0.5).half().float())


def branched(layer: Layer) -> Layer:
    """Add a low-rank branch."""
    assert layer.weight is not None
    rows, columns = layer.weight.flatten(1).shape
    pair = torch.randn(4, columns) / 9, torch.randn(rows, 4) / 9
    return replace(layer, branch=(pair[0].half().float(), pair[1].half().float()))


def shifted(layer: Layer) -> Layer:
    """Shift the output."""
    assert layer.weight is not None
    return replace(layer, shift=torch.randn(len(layer.weight)))


def quantized_output(layer: Layer) -> Layer:
    """Quantize the output."""
    return replace(layer, scheme=replace(layer.scheme, output=parse_spec("uint8")), bounds=(-2.0, 3.0))


FIELDS = {"smoothing": smoothed, "branch": branched, "shift": shifted, "bounds": quantized_output}


CASES = [
    *((name, "int8:tensor") for name in FIELDS),
    *(("+".join(FIELDS), activation) for activation in ("float", "int8:tensor:step", "int8:tensor:dynamic")),
]


@pytest.mark.parametrize(("names", "activation"), CASES)
def test_fields_of_layers_with_weights(kinds: Plan, names: str, activation: str) -> None:
    torch.manual_seed(2)
    plan = planned(kinds, "int8:channel", activation)
    for name in names.split("+"):
        plan = plan.mapped(FIELDS[name], lambda layer: layer.groups == 1)
    plan, ties = round_to_nearest(plan), 0.01 if "bounds" in names else 0.0
    plain = plan.mapped(lambda layer: replace(layer, **dict.fromkeys(names.split("+"))))
    for written, eager, without in zip(by_graph(plan), by_layers(plan), by_layers(plain), strict=True):
        assert ((written - eager).abs() > GRAPH * eager.abs().max()).float().mean() <= ties
        assert (eager - without).norm() > 1e-3 * without.norm(), "the field has an effect"


def test_every_field_is_compared() -> None:
    fixed = {"name", "component", "kind", "sites", "weight", "groups", "options", "requested"}
    assert {field.name for field in fields(Layer)} - fixed == {*FIELDS, "scheme", "low", "high", "rounded"}


def test_words() -> None:
    torch.manual_seed(0)
    assert_same(round_to_nearest(plan_of(nn.Embedding(40, 32), [(torch.arange(10).reshape(2, 5),)], "int8:channel")))


class Attention(nn.Module):
    """Attend."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attend to the keys that are not masked, with a scale of its own."""
        return nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.4) * self.weight


ATTENTION = (
    ("int8:tensor", "float", "float"),
    ("float", "float", "int8:tensor"),
    ("float", "uint8:tensor", "float"),
    ("int8:tensor", "uint8:tensor", "uint8:tensor"),
)


@pytest.mark.parametrize(("activation", "probabilities", "values"), ATTENTION)
def test_attention(activation: str, probabilities: str, values: str) -> None:
    torch.manual_seed(0)
    mask = torch.zeros(5, 5).masked_fill(torch.eye(5) > 0, -1e4)
    given = [(*(torch.randn(1, 2, 5, 8) * (step + 1) for _ in range(3)), mask) for step in range(2)]
    scheme = Scheme(
        activation=parse_spec(activation), probabilities=parse_spec(probabilities), values=parse_spec(values)
    )
    plan = plan_of(Attention(), given, "float").mapped(lambda layer: replace(layer, scheme=scheme))
    assert layer_of(plan).kind == "attention"
    assert_same(calibrate_ranges(plan, by="minmax"))


def layer_named(plan: Plan, name: str) -> Layer:
    """Find a layer."""
    return next(layer for layer in plan.layers if layer.name == f"net.{name}")


def test_a_layer_in_float_is_the_operator(kinds: Plan) -> None:
    layer = layer_named(kinds, "conv2d")
    (x,), sample = feeds()[0], kinds.calibration.samples[0]
    changed = shifted(quantized_output(branched(smoothed(layer)))).in_float()
    assert layer.weight is not None
    expected = nn.functional.conv2d(x.reshape(2, 16, 8, 8), layer.weight, None, 2, 1)
    assert torch.equal(changed.apply(x.reshape(2, 16, 8, 8), sample=sample), expected)


def test_merging_undoes_what_a_matrix_leaves_out(kinds: Plan) -> None:
    layer = smoothed(branched(layer_named(kinds, "conv2d")))
    assert layer.weight is not None and not torch.allclose(layer.matrix(), layer.weight, atol=1e-2)
    assert torch.allclose(layer.merged(layer.matrix()), layer.weight, atol=1e-6)


WEIGHTS = ("int8:channel", "int8:tensor", "uint4:group=16", "int4:group=8:scale=uint4", "mxfp4")


@pytest.mark.parametrize("weight", WEIGHTS)
def test_some_outputs_are_those_of_all(kinds: Plan, weight: str) -> None:
    plan = planned(kinds, weight, "int8:token").mapped(lambda layer: shifted(branched(smoothed(layer))))
    layer, (x,), sample = layer_named(round_to_nearest(plan), "linear"), feeds()[0], kinds.calibration.samples[0]
    whole, some = layer.apply(x, sample=sample), layer.thinned(5).apply(x, sample=sample)
    assert some.shape[-1] == 5 and (some - whole[..., ::5]).abs().max() <= GRAPH * whole.abs().max()
    assert layer.thinned(1) is layer


def test_a_plan_reads_as_a_table(kinds: Plan) -> None:
    plan = planned(kinds, "int8:channel", "int8:tensor", "int8:tensor:step")
    plan = round_to_nearest(plan.mapped(lambda layer: smoothed(branched(layer)), lambda layer: layer.kind == "linear"))
    header, *rows = str(plan).splitlines()
    assert header.split() == ["layer", "kind", "scheme", "decided"] and len(rows) == 6
    row = {line.split()[0]: line for line in rows}
    decided = "smoothing, range, rounded weight, low-rank branch of 4"
    words = ["net.linear", "linear", "weight int8:channel, activation int8:tensor", decided]
    assert row["net.linear"].split() == " ".join(words).split()
    assert row["net.conv2d"].endswith(
        "weight int8:channel, activation int8:tensor:step  ranges of 3 steps, rounded weight"
    )
    assert str(layer_named(plan, "linear")) == f"net.linear (linear): {words[2]}; {decided}"
    assert str(layer_named(plan, "linear").in_float()) == "net.linear (linear): float; nothing decided"
