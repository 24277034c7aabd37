"""Compile every scheduler that diffusers has, and compare with its own trajectory; what cannot be compiled says why."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from diffc.compiler import capture
from diffc.compiler.errors import CaptureError
from diffc.compiler.evaluate import evaluate
from diffc.compiler.pipeline import run
from diffc.passes import NORMAL_FORM
from tests.tolerances import SCHEDULERS

STEPS = 20
LINEAR = (
    *("CogVideoXDDIMScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "DDPMScheduler"),
    *("DDPMParallelScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("DPMSolverMultistepInverseScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "TCDScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "LCMScheduler"),
    *("FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "HeunDiscreteScheduler", "IPNDMScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler"),
    *("LTXEulerAncestralRFScheduler", "SASolverScheduler", "UniPCMultistepScheduler"),
)
CLAMPED = ("CMStochasticIterativeScheduler", "UnCLIPScheduler")
CLIPPING = ("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "DDPMScheduler", "DDPMParallelScheduler")
BROWNIAN = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"prediction_type": "sample"}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ("DDIMScheduler", {"clip_sample": False, "thresholding": True}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
]


class Model(nn.Module):
    """Stand for a denoiser: it mixes channels, so that mistakes do not cancel."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.3 * torch.randn(4, 4, generator=generator))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", self.weight, sample) + 0.1 * sample


def compiled_and_own(name: str, options: dict[str, Any]) -> tuple[Any, Tensor, Tensor]:
    """Give the program of a scheduler, what it draws, and what the scheduler draws, from the same seed."""
    model, kind = Model(), getattr(diffusers, name)

    def sampler() -> Tensor:
        scheduler = kind(**options)
        scheduler.set_timesteps(STEPS)
        x = torch.randn(1, 4, 8, 8) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for t in scheduler.timesteps:
            y = model(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
            x = scheduler.step(y, t, x, return_dict=False)[0]
        return x

    torch.manual_seed(0)
    with torch.no_grad():
        own = sampler()
    program = run(capture(sampler, {"model": model}), NORMAL_FORM)
    torch.manual_seed(0)
    noises = [
        torch.randn(op.results[0].type.shape) for op in program.ops if op.operator == "noise" if op.results[0].type
    ]
    return program, evaluate(program, tokens={}, noises=noises)[0], own


def agrees(compiled: Tensor, own: Tensor) -> bool:
    return bool((compiled - own).norm() <= SCHEDULERS * own.norm()) and bool(own.isfinite().all())


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_scheduler_takes_one_linear_a_step(name: str) -> None:
    options = {"clip_sample": False} if name in CLIPPING else {}
    program, compiled, own = compiled_and_own(name, options)
    assert agrees(compiled, own)
    operators = [op.operator for op in program.ops]
    assert operators.count("linear") <= operators.count("model") + 2
    assert [graph.name for graph in program.graphs] == ["model"]


@pytest.mark.parametrize("name", [*CLAMPED, *CLIPPING])
def test_a_clamp_becomes_a_small_graph(name: str) -> None:
    program, compiled, own = compiled_and_own(name, {})
    assert agrees(compiled, own)
    assert len(program.graphs) == 2, "one graph serves all steps"


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[f"{n}-{'-'.join(o)}" for n, o in VARIANTS])
def test_options_of_a_scheduler_are_followed(name: str, options: dict[str, Any]) -> None:
    _, compiled, own = compiled_and_own(name, options)
    assert agrees(compiled, own)


@pytest.mark.filterwarnings("ignore:Should have t[ab].=t:UserWarning:torchsde")
@pytest.mark.parametrize("name", BROWNIAN)
def test_a_brownian_tree_is_refused_with_the_line_that_seeds_it(name: str) -> None:
    with pytest.raises(CaptureError, match="draws numbers that are not normal") as refused:
        compiled_and_own(name, {})
    assert "randint" in str(refused.value.where)


def test_the_lists_name_real_schedulers() -> None:
    for name in (*LINEAR, *CLAMPED, *BROWNIAN):
        assert inspect.isclass(getattr(diffusers, name))
