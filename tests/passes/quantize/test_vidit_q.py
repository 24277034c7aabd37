"""ViDiT-Q's schemes, its ranges of steps in the program, and which layers it finds sensitive."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffc.compiler.calibration.calibrate import Calibration
from diffc.compiler.calibration.trajectory import Sample
from diffc.compiler.errors import PassError
from diffc.compiler.graph.body import body_of
from diffc.compiler.graph.evaluate import evaluate
from diffc.compiler.quantization.apply_plan import applied
from diffc.compiler.quantization.formats import Scheme, parse_spec
from diffc.compiler.quantization.layer import Layer
from diffc.compiler.quantization.plan import Plan
from diffc.compiler.tracing.trace import capture
from diffc.passes.fuse_linear import fuse_linear
from diffc.passes.quantize.round_to_nearest import round_to_nearest
from diffc.passes.quantize.smoothquant import smoothquant
from diffc.passes.quantize.vidit_q import vidit_q
from diffc.runtime.program.verify import verify
from tests.one_graph import Tensors, layer_of, plan_of, signal_to_noise
from tests.request_values import request_values
from tests.tolerances import RANGES_GAIN

WIDTH, STEPS = 32, 5


class Denoiser(nn.Module):
    """Attend to itself, and feed forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.RMSNorm(WIDTH)
        self.ff = nn.Linear(WIDTH, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict the noise."""
        heads = [self.norm(layer(x)).reshape(1, -1, 2, WIDTH // 2).transpose(1, 2) for layer in (self.q, self.k)]
        value = self.v(x).reshape(1, -1, 2, WIDTH // 2).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(*heads, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(1, -1, WIDTH))
        return self.conv((x + self.ff(x)).transpose(1, 2)).transpose(1, 2)


def planned(weight: str = "int8:channel", activation: str = "uint8:tensor") -> Plan:
    """Plan for a sampler whose steps have other outliers in the first half than in the second."""
    denoiser = Denoiser().eval().requires_grad_(False)
    sizes = [torch.ones(WIDTH).index_fill_(0, torch.arange(8) + (0 if n * 2 < STEPS else 8), 30) for n in range(STEPS)]

    def sample() -> torch.Tensor:
        latents = torch.randn(1, 6, WIDTH)
        for size in sizes:
            latents = latents - 0.1 * denoiser(latents * size)
        return latents

    program = fuse_linear(capture(sample, {"denoiser": denoiser}))
    feeds = [torch.randn(1, 6, WIDTH) * size for size in sizes]
    samples = tuple(Sample("denoiser", n, STEPS, 0, (x,)) for n, x in enumerate(feeds))
    scheme = Scheme(parse_spec(weight), parse_spec(activation))

    def of(layer: Layer) -> Scheme:
        return Scheme() if layer.kind == "attention" else scheme

    return Plan.of((program,), Calibration(program, samples, (), 0, ""), of)


def schemes(plan: Plan) -> dict[str, str]:
    """Map the layers to their schemes."""
    return {x.name.removeprefix("denoiser."): f"{x.scheme.weight} {x.scheme.activation}" for x in plan.layers}


def computed(plan: Plan) -> list[torch.Tensor]:
    """Run the program of a plan."""
    program = verify(plan.programs[0])
    return list(evaluate(program, request_values(program, [torch.ones(1, 6, WIDTH)])))


def fidelity(plan: Plan) -> float:
    """Measure what the rounded graphs give for the samples, in dB."""
    quantized = {graph.name: body_of(graph) for graph in applied(round_to_nearest(plan))[0].graphs}
    samples = plan.calibration.samples
    wanted = [body_of(plan.graphs[sample.graph])(*sample.feeds)[0] for sample in samples]
    return signal_to_noise([quantized[sample.graph](*sample.feeds)[0] for sample in samples], wanted)


@pytest.mark.parametrize(
    ("given", "linear", "conv"),
    [
        (("int8:channel", "uint8:tensor"), "int8:channel int8:token", "int8:channel int8:tensor:dynamic"),
        (("int4:tensor", "int6:tensor:step"), "int4:channel int6:token", "int4:channel int6:tensor:dynamic"),
        (("int4:group=16", "e4m3:tensor"), "int4:group=16 e4m3:token", "int4:group=16 e4m3:tensor:dynamic"),
        (("int4:channel", "float"), "int4:channel None", "int4:channel None"),
    ],
)
def test_scales_are_computed_at_run_time(given: tuple[str, str], linear: str, conv: str) -> None:
    found = schemes(vidit_q(planned(*given)))
    assert (found["q"], found["ff"], found["conv"]) == (linear, linear, conv)


def test_channels_are_balanced_as_smoothquant_does() -> None:
    plan = planned("int8:channel", "int8:token")
    mine, theirs = vidit_q(plan, alpha=0.5), smoothquant(plan, alpha=0.5)
    for a, b in zip(mine.layers, theirs.layers, strict=True):
        if a.kind == "linear":
            assert a.smoothing is not None and b.smoothing is not None and torch.equal(a.smoothing, b.smoothing)


def test_each_range_of_steps_has_a_graph_and_layers() -> None:
    plan = planned()
    found = vidit_q(plan, ranges=2)
    calls = [op.operator for op in found.programs[0].ops if op.operator.startswith("denoiser")]
    assert calls == ["denoiser"] * 3 + ["denoiser_range_2"] * 2
    assert set(found.graphs) == {"denoiser", "denoiser_range_2"}
    assert [(s.graph, s.step, s.of) for s in found.calibration.samples] == [
        ("denoiser", 0, 3),
        ("denoiser", 1, 3),
        ("denoiser", 2, 3),
        ("denoiser_range_2", 0, 2),
        ("denoiser_range_2", 1, 2),
    ]
    assert all(torch.equal(a, b) for a, b in zip(computed(found), computed(plan), strict=True))
    first, second = (next(x for x in found.layers if x.name == name) for name in ("denoiser.q", "denoiser.q.range_2"))
    assert [first.sites[0].graph, second.sites[0].graph] == ["denoiser", "denoiser_range_2"]
    assert first.smoothing is not None and second.smoothing is not None
    assert first.smoothing[:8].mean() < second.smoothing[:8].mean()
    assert first.smoothing[8:16].mean() > second.smoothing[8:16].mean()
    verify(applied(round_to_nearest(found))[0])


def test_ranges_bring_the_output_nearer() -> None:
    plan = planned("int8:channel", "int8:token")
    assert fidelity(vidit_q(plan, ranges=2)) > fidelity(vidit_q(plan)) + RANGES_GAIN


def test_a_part_of_either_kind_of_layer_keeps_eight_bits() -> None:
    plan = planned("int4:channel", "int8:token")
    plan = plan.mapped(
        lambda layer: replace(layer, smoothing=torch.ones(WIDTH)), lambda layer: layer.weight is not None
    )
    for layer in plan.layers:
        if layer.weight is not None and layer.name not in ("denoiser.k", "denoiser.ff"):
            layer.weight.sign_()  # four bits hold it as it is
    found = schemes(vidit_q(plan, sensitive=0.3))
    assert {name for name, scheme in found.items() if scheme.startswith("int8")} == {"k", "ff"}


def test_what_is_decided_stays() -> None:
    torch.manual_seed(0)
    feeds: list[Tensors] = [(torch.randn(5, 32),)]
    rounded = round_to_nearest(plan_of(nn.Linear(32, 16), feeds, "int4:channel", "int8:tensor"))
    assert layer_of(vidit_q(rounded, sensitive=1.0)) is layer_of(rounded)


@pytest.mark.parametrize("ranges", [0, 6])
def test_ranges_that_the_steps_do_not_fill_are_refused(ranges: int) -> None:
    with pytest.raises(PassError, match=f"vidit_q: {ranges} ranges of steps\n.*use 1 to 5"):
        vidit_q(planned(), ranges=ranges)


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(PassError, match=r"vidit_q: 1\.5 of the layers"):
        vidit_q(planned(), sensitive=1.5)
