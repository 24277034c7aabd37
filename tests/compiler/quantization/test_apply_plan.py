"""The graph that a plan becomes computes what is written by hand in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import PassError
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.lazy_weights import materialize
from diffc.compiler.ir.program import Program, Ref
from diffc.compiler.quantization.apply_plan import SCALES, applied
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.passes.quantize.calibrate_ranges import calibrate_ranges
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from tests.one_graph import Tensors, layer_of, plan_of, run
from tests.tolerances import GRAPH

linear, conv2d = nn.functional.linear, nn.functional.conv2d

Function = Callable[..., torch.Tensor]


def feeds(*shape: int, count: int = 4) -> list[Tensors]:
    """Sample inputs, each larger than the one before."""
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(*shape, generator=random) * (step + 1),) for step in range(count)]


def matrix() -> nn.Linear:
    """Make a linear layer."""
    torch.manual_seed(0)
    return nn.Linear(32, 24)


def convolution() -> nn.Conv2d:
    """Make a convolution."""
    torch.manual_seed(0)
    return nn.Conv2d(8, 12, 3, stride=2, padding=1)


def planned(module: nn.Module, given: list[Tensors], weight: str, activation: str) -> Plan:
    """Plan with ranges and rounded weights."""
    return round_to_nearest(calibrate_ranges(plan_of(module, given, weight, activation), by="minmax"))


def rounded(layer: Layer) -> torch.Tensor:
    """Give the weight that a layer has after rounding."""
    assert layer.rounded is not None and layer.scheme.weight is not None
    return layer.rounded.value(layer.scheme.weight)


def bias_of(module: nn.Module) -> torch.Tensor:
    """Give a module's bias."""
    bias = module.get_parameter("bias")
    return bias


def compared(plan: Plan, given: list[Tensors], by_hand: Function) -> None:
    """Compare what the graph makes of each input with a function of it."""
    made = run(applied(plan), given)
    for found, (x,) in zip(made, given, strict=True):
        wanted = by_hand(x)
        assert (found - wanted).abs().max() <= GRAPH * wanted.abs().max()


def symmetric(x: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Round to signed bytes."""
    return (x / scale).round().clamp(-128, 127) * scale


WEIGHTS = (
    "int8:channel",
    "int8:tensor",
    "uint4:group=16",
    "int4:group=8:scale=uint4",
    "int4:group=16:scale=float16",
    "e4m3:channel",
    "nvfp4",
    "mxfp4",
)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("make", [matrix, convolution])
def test_weights_alone(make: Callable[[], nn.Linear | nn.Conv2d], weight: str) -> None:
    module = make()
    given = feeds(3, 32) if isinstance(module, nn.Linear) else feeds(1, 8, 7, 7)
    plan = planned(module, given, weight, "float")
    value, bias = rounded(layer_of(plan)), bias_of(module)
    assert value.dtype == torch.float32 and not torch.equal(value, module.weight)
    if isinstance(module, nn.Linear):
        compared(plan, given, lambda x: linear(x, value, bias))
    else:
        compared(plan, given, lambda x: conv2d(x, value, bias, 2, 1))


def test_a_static_scale() -> None:
    module, given = matrix(), feeds(3, 32)
    plan = planned(module, given, "int8:channel", "int8:tensor")
    scale = torch.cat([x for (x,) in given]).abs().max() / 127
    value = rounded(layer_of(plan))
    compared(plan, given, lambda x: linear(symmetric(x, scale), value, module.bias))


def test_a_static_scale_and_zero_and_what_the_convolution_gives() -> None:
    module, given = convolution(), [(x.relu() - 0.1,) for (x,) in feeds(1, 8, 7, 7)]
    plan = plan_of(module, given, "int8:channel", "uint8:tensor")
    scheme = replace(layer_of(plan).scheme, output=parse_spec("uint8"))
    plan = round_to_nearest(calibrate_ranges(plan.mapped(lambda layer: replace(layer, scheme=scheme)), by="minmax"))

    def affine(x: torch.Tensor, all_: torch.Tensor) -> torch.Tensor:
        low, high = min(0.0, float(all_.min())), max(0.0, float(all_.max()))
        scale = np.float32((high - low) / 255)
        zero = round(-low / float(scale))
        return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale

    inputs, value = torch.cat([x for (x,) in given]), rounded(layer_of(plan))
    outputs = torch.cat([module(x) for (x,) in given])
    made = run(applied(plan), given)
    for found, (x,) in zip(made, given, strict=True):
        wanted = affine(conv2d(affine(x, inputs), value, module.bias, 2, 1), outputs)
        step = float(outputs.max() - outputs.min()) / 255
        assert ((found - wanted).abs() > 0.01 * step).float().mean() < 0.01, "but for ties"
        assert (found - wanted).abs().max() <= 1.01 * step


def test_a_scale_for_each_token() -> None:
    module, given = matrix(), feeds(2, 5, 32)
    plan = planned(module, given, "int8:channel", "int8:token")
    value = rounded(layer_of(plan))
    compared(plan, given, lambda x: linear(symmetric(x, x.abs().amax(-1, keepdim=True) / 127), value, module.bias))


def test_a_token_of_zeros_gives_the_bias() -> None:
    module = matrix()
    plan = planned(module, feeds(2, 5, 32), "int8:channel", "int8:token")
    (made,) = run(applied(plan), [(torch.zeros(2, 5, 32),)])
    assert torch.equal(made, module.bias.expand(2, 5, 24))


@pytest.mark.parametrize("activation", ["int8:tensor:dynamic", "e4m3:tensor:dynamic"])
def test_a_scale_for_all_that_is_computed_in_the_run(activation: str) -> None:
    module, given = convolution(), feeds(2, 8, 7, 7)
    plan = planned(module, given, "int8:channel", activation)
    value = rounded(layer_of(plan))

    def rounds(x: torch.Tensor) -> torch.Tensor:
        if activation.startswith("int8"):
            return symmetric(x, x.abs().max() / 127)
        scale = x.abs().max() / 448
        return (x / scale).to(torch.float8_e4m3fn).float() * scale

    compared(plan, given, lambda x: conv2d(rounds(x), value, module.bias, 2, 1))


@pytest.mark.parametrize("activation", ["int4:group=16:dynamic", "int4:group=16"])
def test_a_scale_for_each_group(activation: str) -> None:
    module, given = matrix(), feeds(2, 5, 32)
    plan = planned(module, given, "int4:group=16", activation)
    value = rounded(layer_of(plan))

    def rounds(x: torch.Tensor) -> torch.Tensor:
        each = x.reshape(2, 5, 2, 16)
        scale = each.abs().amax(-1, keepdim=True) / 7
        return ((each / scale).round().clamp(-8, 7) * scale).reshape(x.shape)

    compared(plan, given, lambda x: linear(rounds(x), value, module.bias))


@pytest.mark.parametrize("make", [matrix, convolution])
def test_smoothing_and_a_branch(make: Callable[[], nn.Linear | nn.Conv2d]) -> None:
    module = make()
    given = feeds(3, 32) if isinstance(module, nn.Linear) else feeds(1, 8, 7, 7)
    axes = (1,) * (module.weight.dim() - 2)
    torch.manual_seed(2)
    smoothing = (torch.rand(module.weight.shape[1]) + 0.5).half().float()
    down, up = torch.randn(4, module.weight[0].numel()), torch.randn(len(module.weight), 4) / 9
    plan = plan_of(module, given, "int8:channel", "int8:tensor:dynamic")
    plan = round_to_nearest(plan.mapped(lambda layer: replace(layer, smoothing=smoothing, branch=(down, up))))
    value, branch = rounded(layer_of(plan)), (up.half().float() @ down.half().float()).reshape(module.weight.shape)
    error = value + branch - module.weight / smoothing.reshape(1, -1, *axes)
    assert error.abs().max() < value.abs().max() / 127, "they stand for the weight"

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        x = x * smoothing.reshape(-1, *axes)
        quantized, bias = symmetric(x, x.abs().max() / 127), bias_of(module)
        if isinstance(module, nn.Linear):
            return linear(quantized, value) + linear(x, branch, bias)
        return conv2d(quantized, value, None, 2, 1) + conv2d(x, branch, bias, 2, 1)

    compared(plan, given, by_hand)


def test_words_are_looked_up_in_few_bits() -> None:
    torch.manual_seed(0)
    module, given = nn.Embedding(40, 32), [(torch.arange(10).reshape(2, 5),)]
    plan = planned(module, given, "int8:channel", "float")
    (made,) = run(applied(plan), given)
    assert torch.equal(made, rounded(layer_of(plan))[given[0][0]])
    stored = [tensor.dtype for tensor in applied(plan)[0].graphs[0].body.state_dict.values()]
    stored += [tensor.dtype for tensor in applied(plan)[0].graphs[0].body.constants.values()]
    assert torch.int8 in stored


class Attention(nn.Module):
    """Attend."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend to the keys."""
        return nn.functional.scaled_dot_product_attention(q, k, v) * self.weight

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("first", "probabilities", "values"),
    [
        ("int8:tensor", "float", "float"),
        ("float", "float", "int8:tensor"),
        ("int8:tensor", "float", "int8:tensor"),
        ("float", "uint8:tensor", "int8:tensor"),
        ("int8:tensor", "uint8:tensor", "int8:tensor"),
    ],
)
def test_each_product_of_attention_has_formats_of_its_own(first: str, probabilities: str, values: str) -> None:
    torch.manual_seed(0)
    given = [(torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8) * 3, torch.rand(1, 2, 5, 8))]
    scheme = Scheme(activation=parse_spec(first), probabilities=parse_spec(probabilities), values=parse_spec(values))
    plan = plan_of(Attention(), given, "float").mapped(lambda layer: replace(layer, scheme=scheme))
    plan = calibrate_ranges(plan, by="minmax")
    formats = (first, first, values)
    q, k, v = (
        x if form == "float" else symmetric(x, x.abs().max() / 127) for x, form in zip(given[0], formats, strict=True)
    )
    weights = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
    wanted = (weights if probabilities == "float" else (weights * 255).round() / 255) @ v
    (made,) = run(applied(plan), given)
    assert (made - wanted).abs().max() <= GRAPH * wanted.abs().max()


# Scales for each step


def by_step(module: nn.Module, given: list[Tensors], weight: str = "int8:channel") -> Plan:
    """Plan a scale for each step."""
    return planned(module, given, weight, "int8:tensor:step")


def called(program: Program, given: list[Tensors]) -> list[torch.Tensor]:
    """Run a program's calls, each with what it is given and its own row of scales."""
    (graph,) = program.graphs
    module = body_of(graph)
    materialize(module)
    tables = {table.name: torch.as_tensor(table.data) for table in program.tables}
    rows = dict[str, torch.Tensor]()
    for op in program.ops:
        if op.operator == "split":
            (name,) = op.reads()
            pieces = tables[name].chunk(len(op.results))
            rows |= {value.name: piece for value, piece in zip(op.results, pieces, strict=True)}
    calls = [op for op in program.ops if op.operator == graph.name]
    scales = [dict(op.attrs)[SCALES] for op in calls]
    assert all(isinstance(ref, Ref) for ref in scales)
    return [module(*x, rows[ref.name])[0] for x, ref in zip(given, scales, strict=True)]  # type: ignore[union-attr]


@pytest.mark.parametrize("make", [matrix, convolution])
def test_a_scale_for_each_step_is_a_row_of_a_table(make: Callable[[], nn.Linear | nn.Conv2d]) -> None:
    module = make()
    given = feeds(3, 32) if isinstance(module, nn.Linear) else feeds(1, 8, 7, 7)
    plan = by_step(module, given)
    (program,) = applied(plan)
    (graph,), (table,) = program.graphs, program.tables
    assert [port.name for port in graph.inputs] == ["x0", SCALES] and graph.inputs[1].type.shape == (1, 1)  # type: ignore[union-attr]
    wanted = [float(x.abs().max()) / 127 for (x,) in given]
    assert table.data is not None and table.data[:, 0].tolist() == pytest.approx(wanted, rel=1e-6)
    value, bias = rounded(layer_of(plan)), bias_of(module)
    for found, (x,), scale in zip(called(program, given), given, wanted, strict=True):
        x = symmetric(x, scale)
        by_hand = linear(x, value, bias) if isinstance(module, nn.Linear) else conv2d(x, value, bias, 2, 1)
        assert (found - by_hand).abs().max() <= GRAPH * by_hand.abs().max()


def test_a_program_of_another_number_of_steps_reads_the_rows_nearest_in_time() -> None:
    given = feeds(3, 32, count=5)
    plan = by_step(matrix(), given)
    (program,) = plan.programs
    tables = list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]()
    for count in (5, 3, 1, 9):
        other = replace(program, name=f"main_{count}", ops=program.ops[:1] * count)
        made = applied(replace(plan, programs=(program, other)))[1]
        (table,) = made.tables
        assert table.data is not None
        tables.append(table.data)
    whole = tables[0]
    assert np.array_equal(tables[1], whole[[0, 2, 4]]) and np.array_equal(tables[2], whole[:1])
    assert np.array_equal(tables[3], whole[[0, 0, 1, 2, 2, 2, 3, 4, 4]])


class Two(nn.Module):
    """Have two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both."""
        return self.second(self.first(x).relu())


def test_each_layer_has_its_own_column() -> None:
    module, given = Two(), feeds(3, 32)
    plan = by_step(module, given)
    first, second = (rounded(layer) for layer in plan.layers)
    hidden = [module.first(x).relu() for (x,) in given]
    for found, (x,), float_ in zip(called(applied(plan)[0], given), given, hidden, strict=True):
        middle = linear(symmetric(x, x.abs().max() / 127), first, module.first.bias).relu()
        wanted = linear(symmetric(middle, float_.abs().max() / 127), second, module.second.bias)
        assert (found - wanted).abs().max() <= GRAPH * wanted.abs().max()


def test_two_graphs_with_the_same_scales_read_one_table() -> None:
    given = feeds(3, 32)
    plan = by_step(matrix(), given)
    (program,) = plan.programs
    (graph,) = program.graphs
    calls = (*program.ops, *(replace(op, operator="other") for op in program.ops))
    both = replace(program, graphs=(graph, replace(graph, name="other")), ops=calls)
    samples = tuple(Sample(name, at, 4, 0, x) for name in ("net", "other") for at, x in enumerate(given))
    again = Plan.of((both,), replace(plan.calibration, program=both, samples=samples), lambda _: layer_of(plan).scheme)
    (made,) = applied(round_to_nearest(calibrate_ranges(again)))
    assert len({table.name for table in made.tables}) == len(made.tables)


def test_what_is_not_quantized_stays_the_same_graph() -> None:
    plan = plan_of(Two(), feeds(3, 32), "float")
    assert applied(plan)[0].graphs[0] is plan.programs[0].graphs[0]
    one = replace(plan, layers=(replace(plan.layers[0], scheme=Scheme(parse_spec("int8:channel"))), plan.layers[1]))
    (program,) = applied(round_to_nearest(one))
    kept = [weight for name, weight in program.graphs[0].body.state_dict.items() if "second" in name]
    assert any(torch.equal(weight, Two().second.weight) for weight in kept)


def test_no_float_copy_of_a_rounded_weight_remains() -> None:
    (program,) = applied(planned(matrix(), feeds(3, 32), "int8:channel", "float"))
    body = program.graphs[0].body
    held = [*body.state_dict.values(), *body.constants.values()]
    assert not any(tensor.dtype == torch.float32 and tensor.numel() >= 32 * 24 for tensor in held)
    assert sum(tensor.dtype == torch.int8 and tensor.numel() == 32 * 24 for tensor in held) == 1


@pytest.mark.parametrize(
    ("weight", "changes", "what"),
    [
        ("float", {"smoothing": torch.ones(32)}, "the weight of net.weight is smoothed, and not rounded"),
        ("float", {"branch": (torch.ones(2, 32), torch.ones(24, 2))}, "is beside a low-rank branch, and not rounded"),
        ("int4:channel", {"smoothing": torch.ones(32)}, "is smoothed, and not rounded"),
    ],
)
def test_a_weight_that_is_not_rounded_is_not_written_as_the_checkpoint_has_it(
    weight: str, changes: dict[str, Any], what: str
) -> None:
    plan = calibrate_ranges(plan_of(matrix(), feeds(2, 32), weight, "int8:tensor"))
    with pytest.raises(PassError, match=what) as refused:
        applied(plan.mapped(lambda layer: replace(layer, **changes)))
    assert refused.value.fix == "round it after its other techniques, as round_to_nearest does"


@pytest.mark.parametrize("activation", ["int8:tensor", "int8:tensor:step"])
def test_an_activation_without_a_range_stays_in_float(activation: str) -> None:
    module, inputs = matrix(), feeds(2, 32)
    plan = round_to_nearest(plan_of(module, inputs, "int8:channel", activation))
    compared(plan, inputs, lambda x: linear(x, rounded(layer_of(plan)), bias_of(module)))
