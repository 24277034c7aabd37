"""Layers are found by the weight they read; plans show what reaches them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import CalibrationError
from diffc.compiler.quantization.formats import parse_spec
from diffc.compiler.quantization.layer import Layer, Rounded, Site
from diffc.compiler.quantization.ops import scale_and_zero
from diffc.compiler.quantization.plan import Plan, Scheme, find_layers
from diffc.compiler.tracing.trace import capture
from diffc.passes.stage import stage
from tests.one_graph import Tensors, layer_of, plan_of

SCHEME = "int8:channel"


class Everything(nn.Module):
    """Read weights in all ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(40, 32)
        self.twice = nn.Linear(32, 32)
        self.tied = nn.Linear(32, 40, bias=False)
        self.table = nn.Embedding(40, 32)
        self.table.weight = self.tied.weight
        self.normed = nn.Linear(32, 32)
        self.input = nn.Linear(32, 32, bias=False)
        self.small = nn.Linear(32, 4)
        self.depthwise = nn.Conv1d(40, 80, 13, padding=6, groups=40, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Use a weight twice; others also for words, for a norm, and as what another is applied to."""
        x = self.twice(self.twice(self.words(ids) + self.table(ids)))
        x = nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        x = self.normed(x) / self.normed.weight.norm()
        x = self.input(x) + self.twice(self.input.weight).sum()
        return self.depthwise(self.tied(x).transpose(1, 2)).sum() + self.small(x).sum()


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Plan the layers of a module that reads weights in all ways."""
    return plan_of(Everything(), [(torch.arange(10).reshape(2, 5),)], SCHEME)


def test_layers_are_weights_that_are_read_in_one_way(plan: Plan) -> None:
    found = {layer.name: (layer.kind, len(layer.sites), layer.groups) for layer in plan.layers}
    assert found == {
        "net.words": ("embedding", 1, 1),
        "net.twice": ("linear", 3, 1),
        "net.scaled_dot_product_attention": ("attention", 1, 1),
        "net.depthwise": ("conv", 1, 40),
    }


def test_a_layer_holds_its_weight_and_what_its_operator_takes(plan: Plan) -> None:
    layers = {layer.name: layer for layer in plan.layers}
    module = Everything()
    for name in ("twice", "depthwise", "words"):
        assert torch.equal(layers[f"net.{name}"].matrix(), module.get_submodule(name).weight)
    assert layers["net.depthwise"].options == ([1], [6], [1], 40)
    assert {layer.scheme for layer in plan.layers} == {Scheme(parse_spec(SCHEME))}


def test_a_weight_of_two_graphs_is_one_layer() -> None:
    plan = plan_of(nn.Linear(32, 32), [(torch.randn(3, 32),)], SCHEME)
    (program,) = plan.programs
    (graph,) = program.graphs
    both = replace(program, graphs=(graph, replace(graph, name="other")))
    (layer,) = find_layers([both])
    assert [site.graph for site in layer.sites] == ["net", "other"]
    assert len(find_layers([program, both])) == 1
    apart = replace(program, graphs=(graph, replace(graph, name="other", component="other")))
    assert [layer.component for layer in find_layers([apart])] == ["net", "other"]


class Turned(nn.Module):
    """Apply a matrix that is computed from an argument alone, which a pass folds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, turn: float) -> torch.Tensor:
        """Multiply by the cosines of the products of two positions."""
        return nn.functional.linear(self.first(x), cosines(turn))


def cosines(turn: float) -> torch.Tensor:
    """Return a matrix [32, 32] that ``turn`` decides."""
    return (torch.outer(torch.arange(32.0), torch.arange(32.0)) * turn).cos()


@pytest.mark.parametrize("turns", [(0.25, 0.5), (0.25, 0.25)])
def test_folded_weights_are_one_layer_where_their_values_are_equal(turns: tuple[float, float]) -> None:
    def sample(scale: float = 1.0) -> torch.Tensor:
        x = torch.randn(2, 32) * scale
        for rows, turn in zip((1, 2), turns, strict=True):
            x = net(x[:rows], turn).repeat(2 // rows, 1)
        return x

    net = Turned()
    (program,) = stage([capture(sample, {"net": net})])
    assert [graph.name for graph in program.graphs] == ["net", "net_2"]
    first, *layers = find_layers([program])
    assert first.name == "net.first" and len(first.sites) == 2
    assert len({layer.name for layer in layers}) == len(layers) == len(set(turns))
    for layer, turn in zip(layers, dict.fromkeys(turns), strict=True):
        assert torch.equal(layer.matrix(), cosines(turn))
        assert len(layer.sites) == 2 // len(layers)


def test_smoothing_and_a_branch_come_off_the_weight() -> None:
    torch.manual_seed(0)
    x, weight, smoothing = torch.randn(2, 6, 5, 5), torch.randn(8, 6, 3, 3), torch.rand(6) + 0.5
    down, up = torch.randn(2, 54), torch.randn(8, 2)
    layer = Layer("a", "", "conv", (Site("g", "n"),), weight, smoothing=smoothing, branch=(down, up))
    conv = nn.functional.conv2d
    again = conv(layer.smoothed(x), layer.matrix() + (up @ down).reshape(weight.shape))
    torch.testing.assert_close(again, conv(x, weight), rtol=0, atol=1e-4)
    assert replace(layer, smoothing=None).smoothed(x) is x


def test_a_rounded_weight_stands_for_its_scales_times_codes() -> None:
    spec = parse_spec("int4:group=2:scale=uint4")
    assert spec is not None
    quantized, scale, outer = (
        torch.tensor([[1, 2, 3, 4]], dtype=torch.int8),
        torch.tensor([[2.0, 3.0]]),
        torch.tensor([0.5]),
    )
    assert Rounded(quantized, scale, outer=outer).value(spec).tolist() == [[1.0, 2.0, 4.5, 6.0]]
    affine = Rounded(quantized, scale, zero=torch.tensor([[1.0, 4.0]]))
    assert affine.value(spec).tolist() == [[0.0, 2.0, -3.0, 0.0]]


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0), (-0.001, 200.0)])
@pytest.mark.parametrize("text", ["uint8:tensor", "uint4:tensor", "int8:tensor", "e4m3:tensor"])
def test_a_grid_covers_its_range_and_zero(text: str, low: float, high: float) -> None:
    spec = parse_spec(text)
    assert spec is not None
    scale, zero = scale_and_zero(spec, torch.tensor([low]), torch.tensor([high]))
    offset = torch.zeros(1) if zero is None else zero
    ends = ((spec.format.lowest - offset) * scale, (spec.format.highest - offset) * scale)
    half = scale / 2 if spec.is_affine else scale * spec.format.highest * 1e-6
    assert ends[0] <= min(low, 0.0) + half and ends[1] >= max(high, 0.0) - half
    assert torch.equal(spec.format.round(offset), offset), "zero is a number of the grid"


class Two(nn.Module):
    """Have two layers, of which the second gets what the first gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both."""
        return self.second(self.first(x).relu())


def feeds(count: int = 3) -> list[Tensors]:
    """Sample inputs."""
    torch.manual_seed(1)
    return [(torch.randn(5, 24),) for _ in range(count)]


def test_statistics_are_of_what_reaches_a_layer_after_smoothing_and_of_its_output() -> None:
    given, module = feeds(), Two()
    smoothing = torch.linspace(0.5, 2, 24)
    scheme = Scheme(parse_spec(SCHEME), output=parse_spec("uint8:tensor"))
    plan = plan_of(module, given, SCHEME).mapped(lambda layer: replace(layer, smoothing=smoothing, scheme=scheme))
    (second,) = (layer for layer in plan.layers if layer.name == "net.second")
    inputs, output = plan.statistics([second])["net.second"]
    hidden = [module.first(x).relu() for (x,) in given]
    assert inputs.steps == 3 and inputs.largest is not None
    for step, x in enumerate(hidden):
        assert inputs.histograms[step].high == pytest.approx(float((x * smoothing).max()), rel=1e-6)
        torch.testing.assert_close(inputs.largest[step], (x * smoothing).abs().amax(0))
    made = torch.cat([module.second(x) for x in hidden])
    assert (output.all().low, output.all().high) == pytest.approx((float(made.min()), float(made.max())), rel=1e-5)


def test_statistics_of_a_layer_that_graphs_call_at_different_counts() -> None:
    given = feeds(4)
    plan = plan_of(Two(), given, SCHEME)
    (program,) = plan.programs
    (graph,) = program.graphs
    other = replace(graph, name="other")
    calls = (*program.ops[:2], *(replace(op, operator="other") for op in program.ops))
    both = replace(program, graphs=(graph, other), ops=calls)
    samples = [Sample("net", at, 2, 0, given[at]) for at in range(2)]
    samples += [Sample("other", at, 4, 0, (10 * given[at][0],)) for at in range(4)]
    calibration = replace(plan.calibration, program=both, samples=tuple(samples))
    found = Plan.of((both,), calibration, lambda _: Scheme(parse_spec(SCHEME)))
    statistics = found.statistics([found.layers[0]])[found.layers[0].name][0]
    assert statistics.all().high == pytest.approx(10 * max(float(x.max()) for (x,) in given))
    assert statistics.count == 6


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_infinity_names_the_layer_and_the_step(bad: float) -> None:
    given = feeds()
    given[1][0][0, 0] = bad
    plan = plan_of(Two(), given, SCHEME)
    with pytest.raises(CalibrationError, match=r"NaN or infinity reaches net\.first") as refused:
        plan.statistics(plan.layers)
    assert refused.value.where == "step 2 of 3"


def test_only_chosen_layers_are_mapped() -> None:
    plan = plan_of(Two(), feeds(), SCHEME)
    changed = plan.mapped(lambda layer: replace(layer, scheme=Scheme()), lambda layer: layer.name == "net.first")
    assert [layer.scheme == Scheme() for layer in changed.layers] == [True, False]
    assert changed.layers[1] is plan.layers[1]
    assert layer_of(plan_of(nn.Linear(24, 32), feeds(), "float")).scheme == Scheme()
