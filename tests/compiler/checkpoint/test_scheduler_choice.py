"""Samplers: every short name makes the scheduler it names, and none is put on a model that it cannot follow."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from diffc.compiler.checkpoint import schedulers
from diffc.compiler.checkpoint.scheduler_choice import EDM, FLOW, NOISE, new_scheduler, samplers
from diffc.compiler.errors import LoadError

TRAINED: dict[str, Any] = {
    NOISE: diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    FLOW: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    EDM: diffusers.EDMEulerScheduler(sigma_data=0.5),
}
BOTH = {"dpmpp-2m", "dpmpp-2m-sde", "dpmpp-2s", "unipc", "deis", "sa-solver"}


def fits(name: str) -> set[str]:
    """Say what a short name is for."""
    if name in BOTH:
        return {NOISE, FLOW}
    return {FLOW} if name.startswith("flow-") else {EDM} if name.startswith("edm-") else {NOISE}


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("name", samplers())
def test_a_sampler_takes_a_step_or_is_refused(name: str, trained: str) -> None:
    if trained not in fits(name):
        with pytest.raises(LoadError, match=f"sampler '{name}' is for .* models, this checkpoint is a {trained} model"):
            new_scheduler(name, TRAINED[trained])
        return
    scheduler = new_scheduler(name, TRAINED[trained])
    assert type(scheduler).__name__ == samplers()[name].class_name
    scheduler.set_timesteps(4)
    sample = torch.linspace(-1.0, 1.0, 16).reshape(1, 1, 4, 4)
    if hasattr(scheduler, "scale_model_input"):
        sample = scheduler.scale_model_input(sample, scheduler.timesteps[0])
    sample = scheduler.step(torch.zeros_like(sample), scheduler.timesteps[0], sample).prev_sample
    assert torch.isfinite(sample).all()


def test_keeps_the_checkpoints_schedule() -> None:
    config = new_scheduler("unipc", TRAINED[NOISE]).config
    assert (config.beta_start, config.beta_schedule) == (0.00085, "scaled_linear")


def test_hands_over_the_shift_of_a_flow() -> None:
    config = new_scheduler("dpmpp-2m", TRAINED[FLOW]).config
    assert (config.flow_shift, config.use_flow_sigmas, config.prediction_type) == (3.0, True, "flow_prediction")
    back = new_scheduler("flow-heun", new_scheduler("dpmpp-2m", TRAINED[FLOW]))
    assert back.config.shift == 3.0


def test_spaces_a_flow_as_a_flow() -> None:
    karras = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    assert new_scheduler("unipc", karras).config.use_karras_sigmas is False


def test_takes_a_class_name() -> None:
    assert isinstance(new_scheduler("HeunDiscreteScheduler", TRAINED[NOISE]), diffusers.HeunDiscreteScheduler)


def test_takes_the_class_name_of_a_scheduler_of_diffc() -> None:
    assert isinstance(new_scheduler("GHVBScheduler", TRAINED[NOISE]), schedulers.GHVBScheduler)


@pytest.mark.parametrize("name", ["hb", "ghvb", "evodiff"])
def test_hands_over_the_schedule_to_schedulers_of_diffc(name: str) -> None:
    told = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    current = diffusers.DPMSolverMultistepScheduler(**told, rescale_betas_zero_snr=True, solver_order=3)
    config = new_scheduler(name, current).config
    assert {key: config[key] for key in told} == told
    assert config.rescale_betas_zero_snr is True
    assert config.get("fractional_order", 1.8) == 1.8


def test_keeps_the_momentum_that_is_configured() -> None:
    current = schedulers.GHVBScheduler(fractional_order=2.6)
    assert new_scheduler("hb", current).config.fractional_order == 2.6
    assert new_scheduler("ipndm", current).config.fractional_order == 4.0
    current.register_to_config(fractional_order=6.0)
    with pytest.raises(LoadError, match="sampler 'ghvb' refuses the checkpoint's schedule: fractional_order is 6.0"):
        new_scheduler("ghvb", current)


def test_rejects_an_unknown_name_with_the_closest() -> None:
    with pytest.raises(LoadError) as caught:
        new_scheduler("dpmp-2m", TRAINED[NOISE])
    assert str(caught.value).startswith("unknown sampler 'dpmp-2m'\n  fix: did you mean dpmpp-2m? known: ddim, ddpm")


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "__version__", "SchedulerMixinn", ""])
def test_rejects_what_is_no_scheduler(name: str) -> None:
    with pytest.raises(LoadError, match=f"unknown sampler '{name}'"):
        new_scheduler(name, TRAINED[NOISE])


def test_rejects_a_scheduler_that_cannot_follow_the_schedule() -> None:
    with pytest.raises(LoadError, match="is for IPNDMScheduler models, this checkpoint is a noise model"):
        new_scheduler("IPNDMScheduler", TRAINED[NOISE])


def test_rejects_a_sampler_that_knows_noise_only() -> None:
    with pytest.raises(LoadError, match="knows noise prediction only, the checkpoint's is 'v_prediction'"):
        new_scheduler("RePaintScheduler", diffusers.DDIMScheduler(prediction_type="v_prediction"))


def test_rejects_options_that_the_class_rejects() -> None:
    current = diffusers.UniPCMultistepScheduler(solver_type="bh2")
    assert new_scheduler("dpmpp-2m", current).config.solver_type == "midpoint"
    broken = diffusers.EulerDiscreteScheduler(beta_schedule="linear")
    broken.register_to_config(beta_schedule="cubic")
    with pytest.raises(LoadError, match="sampler 'ddim' refuses the checkpoint's schedule: cubic"):
        new_scheduler("ddim", broken)


@pytest.mark.skipif(diffusers.utils.is_torchsde_available(), reason="torchsde is installed")
def test_names_the_package_that_a_sampler_needs() -> None:
    with pytest.raises(LoadError, match="needs a package that is missing") as caught:
        new_scheduler("DPMSolverSDEScheduler", TRAINED[NOISE])
    assert "torchsde" in (caught.value.fix or "")
