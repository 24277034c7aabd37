"""Compile every scheduler that diffusers or diffc has, and compare with its own trajectory; what cannot be says why."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from diffc.compiler import capture
from diffc.compiler.checkpoint import schedulers
from diffc.compiler.checkpoint.scheduler_choice import scheduler_class
from diffc.compiler.driver.pass_manager import run
from diffc.compiler.errors import CaptureError
from diffc.compiler.graph.evaluate import evaluate
from diffc.passes import NORMAL_FORM
from diffc.runtime.noise import sampled
from diffc.runtime.rng import Generator
from tests.conftest import ROOT
from tests.request_values import request_values
from tests.tolerances import SCHEDULERS

PAGE = ROOT / "docs" / "measured" / "schedulers.md"
STEPS = 20
LINEAR = (
    *("CogVideoXDDIMScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "DDPMScheduler"),
    *("DDPMParallelScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("DPMSolverMultistepInverseScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "TCDScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "LCMScheduler"),
    *("FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "HeunDiscreteScheduler", "IPNDMScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler"),
    *("LTXEulerAncestralRFScheduler", "SASolverScheduler", "UniPCMultistepScheduler"),
    *("FlowMapEulerDiscreteScheduler", "MiniMaxH3Scheduler"),
)
OWN_LINEAR = ("HBScheduler", "GHVBScheduler")
OWN_GATED = ("EVODiffScheduler",)
OWN = (*OWN_LINEAR, *OWN_GATED)
"""Schedulers of diffc."""
CLAMPED = ("CMStochasticIterativeScheduler", "UnCLIPScheduler")
CLIPPING = ("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "DDPMScheduler", "DDPMParallelScheduler")
BROWNIAN = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")
TOKENS: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 7},
    "BlockRefinementScheduler": {},
    "DiscreteDDIMScheduler": {},
    "EntropyBoundScheduler": {},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
}
"""Schedulers that choose among tokens, and how each is made."""

BRANCHING = ("BlockRefinementScheduler",)
"""Those of them that branch on the tokens."""

Loop = Callable[[Any, Callable[[Tensor, Any], Tensor], Tensor], Tensor]
LOOPS: dict[str, tuple[dict[str, Any], Loop]] = {}
"""Schedulers whose pipelines do more than step: how each is made, and its pipeline's loop."""


def loop(name: str, **options: Any) -> Callable[[Loop], Loop]:
    """Register the loop of a scheduler."""

    def register(function: Loop) -> Loop:
        LOOPS[name] = options, function
        return function

    return register


@loop("CogVideoXDPMScheduler", clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True)
def cogvideox_dpm(scheduler: Any, model: Callable[[Tensor, Any], Tensor], x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS)
    before, clean = None, None
    for t in scheduler.timesteps:
        x, clean = scheduler.step(model(x, t), clean, t, before, x, return_dict=False)
        before = t
    return x


@loop("DDPMWuerstchenScheduler")
def wuerstchen(scheduler: Any, model: Callable[[Tensor, Any], Tensor], x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps[:-1]:
        ratio = t.expand(x.size(0))
        x = scheduler.step(model(x, ratio), ratio, x, return_dict=False)[0]
    return x


@loop("SCMScheduler")
def consistency_trigflow(scheduler: Any, model: Callable[[Tensor, Any], Tensor], x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS, max_timesteps=1.5708, intermediate_timesteps=None)
    clean = x
    for t in scheduler.timesteps[:-1]:
        x, clean = scheduler.step(model(x, t), t, x, return_dict=False)
    return clean


@loop("KarrasVeScheduler", sigma_max=1.0)
def karras_ve(scheduler: Any, model: Callable[[Tensor, Any], Tensor], x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        sigma, before = scheduler.schedule[t], scheduler.schedule[t - 1] if t > 0 else 0
        noisy, churned = scheduler.add_noise_to_input(x, sigma)
        taken = scheduler.step(churned / 2 * model((noisy + 1) / 2, churned / 2), churned, before, noisy)
        if before != 0:
            y = model((taken.prev_sample + 1) / 2, before / 2)
            taken = scheduler.step_correct(y, churned, before, noisy, taken.prev_sample, taken["derivative"])
        x = taken.prev_sample
    return x


@loop("RePaintScheduler")
def repaint(scheduler: Any, model: Callable[[Tensor, Any], Tensor], x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS, jump_length=5, jump_n_sample=2)
    picture = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    mask = (torch.arange(x.shape[-1]) < 4).float().expand(x.shape[:1] + (1,) + x.shape[2:])
    before = scheduler.timesteps[0] + 1
    for t in scheduler.timesteps:
        if t < before:
            x = scheduler.step(model(x, t), t, x, picture, mask, return_dict=False)[0]
        else:
            x = scheduler.undo_step(x, before)
        before = t
    return x


@loop("ScoreSdeVeScheduler", sigma_max=50.0)
def score_sde_ve(scheduler: Any, model: Callable[[Tensor, Any], Tensor], x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS)
    scheduler.set_sigmas(STEPS)
    mean = x = x * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i] * torch.ones(len(x))
        x = scheduler.step_correct(model(x, sigma), x, return_dict=False)[0]
        x, mean = scheduler.step_pred(model(x, sigma), t, x, return_dict=False)
    return mean


@loop("RFD4ProteinaScheduler", schedule_mode="log", noise_mode="1/t", tsr_k=1.0, tsr_sigma=1.0)
def proteina(scheduler: Any, model: Callable[[Tensor, Any], Tensor], x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS)
    rows, moved = x.flatten(2)[0], torch.arange(4) > 0
    for t in scheduler.timesteps:
        y = model(rows.reshape(x.shape), t).flatten(2)[0]
        rows = scheduler.step(y[None], t, rows[None], moved[None], return_dict=False)[0][0]
    return rows


@loop("HeliosDMDScheduler", stages=1)
def helios_dmd(scheduler: Any, model: Callable[[Tensor, Any], Tensor], x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS)
    x = x[:, :, None]
    fixed = {"dmd_noisy_tensor": x, "dmd_sigmas": scheduler.sigmas, "dmd_timesteps": scheduler.timesteps}
    for i, t in enumerate(scheduler.timesteps):
        told = {"cur_sampling_step": i, "all_timesteps": scheduler.timesteps}
        x = scheduler.step(model(x[:, :, 0], t)[:, :, None], t, x, return_dict=False, **fixed, **told)[0]
    return x


@loop("PiflowScheduler", n_grid=2, num_policy_substeps=4)
def piflow(scheduler: Any, model: Callable[[Tensor, Any], Tensor], x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        y = model(x, t)
        x = scheduler.step(torch.cat([y, 0.9 * y], dim=-1), t, x, return_dict=False)[0]
    return x


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("HeliosScheduler", {"stages": 1}),
    ("HeliosScheduler", {"stages": 1, "scheduler_type": "euler"}),
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
    ("DDIMScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.5}),
    ("DPMSolverMultistepScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 0.7}),
    ("UniPCMultistepScheduler", {"thresholding": True, "sample_max_value": 1.5}),
    ("DDPMScheduler", {"clip_sample": False, "thresholding": True, "dynamic_thresholding_ratio": 0.7}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("HBScheduler", {"fractional_order": 2.6, "use_karras_sigmas": True}),
    ("GHVBScheduler", {"fractional_order": 4.0}),
    ("GHVBScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ("GHVBScheduler", {"prediction_type": "sample", "timestep_spacing": "trailing"}),
    ("EVODiffScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ("EVODiffScheduler", {"prediction_type": "sample", "use_karras_sigmas": True}),
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
    model, kind = Model(), scheduler_class(name)
    made, own_loop = LOOPS.get(name, ({}, None))

    def sampler() -> Tensor:
        scheduler = kind(**made | options)
        if own_loop:
            return own_loop(scheduler, model, torch.randn(1, 4, 8, 8))
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
    return program, evaluate(program, request_values(program, noises))[0], own


def agrees(compiled: Tensor, own: Tensor) -> bool:
    return bool((compiled - own).norm() <= SCHEDULERS * own.norm()) and bool(own.isfinite().all())


@pytest.mark.parametrize("name", [*LINEAR, *OWN_LINEAR])
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


@pytest.mark.parametrize("name", OWN_GATED)
def test_coefficients_that_depend_on_the_picture_become_a_small_graph(name: str) -> None:
    program, compiled, own = compiled_and_own(name, {})
    assert agrees(compiled, own)
    called = [op.operator for op in program.ops if op.operator not in ("linear", "noise", "model")]
    assert len(called) == STEPS - 2, "one call a step, but for the first and the last"
    assert len(set(called)) == 3, "one graph serves all steps but the first and the last of them"


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_does_more_than_step_is_followed(name: str) -> None:
    _, compiled, own = compiled_and_own(name, {})
    assert agrees(compiled, own)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[f"{n}-{'-'.join(o)}" for n, o in VARIANTS])
def test_options_of_a_scheduler_are_followed(name: str, options: dict[str, Any]) -> None:
    _, compiled, own = compiled_and_own(name, options)
    assert agrees(compiled, own)


@pytest.mark.filterwarnings("ignore:Should have t[ab].=t:UserWarning:torchsde")
@pytest.mark.parametrize("name", BROWNIAN)
def test_a_brownian_tree_is_refused_with_the_line_that_seeds_it(name: str) -> None:
    with pytest.raises(CaptureError, match="reads the value of a symbolic tensor") as refused:
        compiled_and_own(name, {})
    assert "randint" in str(refused.value.where)


@pytest.mark.parametrize("name", [name for name in TOKENS if name not in BRANCHING])
def test_a_choice_among_tokens_is_the_scheduler_s(name: str) -> None:
    model, sampler = chooser_of_tokens(name)
    program = run(capture(sampler, {"model": model}), NORMAL_FORM)
    for seed in range(3):
        generator = Generator(seed)
        noises = {op.results[0].name: op for op in program.ops if op.operator == "noise"}
        values = {key: torch.from_numpy(sampled(op, generator, op.results[0].type.fixed)) for key, op in noises.items()}
        torch.manual_seed(seed)
        assert torch.equal(evaluate(program, values)[0], sampler())


@pytest.mark.parametrize("name", BRANCHING)
def test_a_branch_on_tokens_is_refused_with_its_line(name: str) -> None:
    model, sampler = chooser_of_tokens(name)
    with pytest.raises(CaptureError) as refused:
        capture(sampler, {"model": model})
    assert ".py:" in str(refused.value.where)


def chooser_of_tokens(name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a model of logits and a sampler of tokens with it."""
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))

    class Logits(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            scores = weight[tokens]
            return scores[..., :-1].transpose(1, 2) if name.startswith("VQ") else scores

    model = Logits()

    def sampler() -> Tensor:
        scheduler = getattr(diffusers, name)(**TOKENS[name])
        scheduler.set_timesteps(4)
        tokens = torch.full((1, 16), 7)
        for t in scheduler.timesteps:
            masked = {"mask_token_id": 7} if name.startswith("Block") else {}
            tokens = scheduler.step(model(tokens), t, tokens, **masked).prev_sample
        return tokens

    return model, sampler


def table() -> str:
    """Write what becomes of each scheduler, for the documentation; the tests above check every row."""
    kinds: dict[str, str] = {
        **dict.fromkeys(LINEAR, "one `linear` a step"),
        **dict.fromkeys(CLAMPED, "`linear`, and one small graph for its clamp"),
        **dict.fromkeys(LOOPS, "its pipeline's own loop: `linear`, and small graphs for what is not linear"),
        **dict.fromkeys((name for name, _ in VARIANTS if name not in (*LINEAR, *OWN)), "one `linear` a step"),
        **dict.fromkeys(BROWNIAN, "**refused**: draws its noise from a Brownian tree, with seeds of its own"),
        **dict.fromkeys(TOKENS, "small graphs: chooses among tokens, with noise of several kinds"),
        **dict.fromkeys(BRANCHING, "**refused**: branches on the tokens"),
    }
    for name in CLIPPING:
        kinds[name] += "; with `clip_sample`, its default, a small graph too"
    rows = [f"| `{name}` | {kinds[name]} |" for name in sorted(kinds)]
    own = {
        **dict.fromkeys(OWN_LINEAR, "one `linear` a step"),
        **dict.fromkeys(OWN_GATED, "`linear`, and a small graph for the coefficients that depend on the image"),
    }
    papers = {name: _paper(scheduler_class(name)) for name in own}
    own_rows = [f"| `{name}` | {papers[name]} | {own[name]} |" for name in own]
    runs = sum("refused" not in kind for kind in kinds.values())
    head = f"""# Schedulers

How diffc compiles each of the {len(kinds)} schedulers of diffusers {diffusers.__version__}: {runs} run, and sample what
diffusers samples to {SCHEDULERS:g} (relative, in float32) over {STEPS} steps. `python -m tests.test_schedulers` wrote
this page, and `tests/test_schedulers.py` checks every row.

| scheduler | in the program |
|---|---|
"""
    tail = """
diffc's own, in `compiler/checkpoint/schedulers/`, for models that predict noise, its velocity or the image (`--sampler`
`hb`, `ghvb`, `evodiff`; `ipndm` is GHVB of order 4, without momentum), checked in the same way. `fractional_order`, in
the configuration of the first two, names order and momentum as the paper does: 1.8, the default, is order 2 with β =
0.8.

| scheduler | paper | in the program |
|---|---|---|
"""
    return head + "\n".join(rows) + "\n" + tail + "\n".join(own_rows) + "\n"


def _paper(kind: Any) -> str:
    cited = re.search(
        r'^Paper: .+?, "(.+?)", (.+)\.\n +(https\S+)', inspect.getdoc(inspect.getmodule(kind)) or "", re.M
    )
    assert cited, "cite the paper at the head of the file"
    return f"[{cited[1]}]({cited[3]}), {cited[2]}"


def test_the_page_on_schedulers_names_every_one_and_is_up_to_date() -> None:
    named = {name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")}
    written = PAGE.read_text(encoding="utf-8")
    assert {name for name in named if inspect.isclass(getattr(diffusers, name, None))} == {
        line.split("`")[1] for line in written.splitlines() if line.startswith("| `")
    } - set(OWN)
    assert set(OWN) == set(schedulers.__all__)
    assert written == table(), "write it again: python -m tests.test_schedulers"


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
