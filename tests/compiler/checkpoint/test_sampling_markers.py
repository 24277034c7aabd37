"""What a file says of its sampling becomes its scheduler's configuration, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from diffc.compiler.checkpoint.load import load
from diffc.compiler.checkpoint.sampling_markers import follow_markers, marked_options
from diffc.compiler.errors import DiffcWarning, LoadError

Tensors = dict[str, torch.Tensor]

EMPTY = torch.zeros(0)
V = {"prediction_type": "v_prediction"}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("tensors", "metadata", "options"),
    [
        ({}, {}, {}),
        ({"v_pred": EMPTY}, {}, V),
        ({"v_pred": EMPTY, "ztsnr": torch.ones(1)}, {}, V | ZERO),
        ({"ztsnr": EMPTY}, {"modelspec.prediction_type": "v"}, V | ZERO),
        ({"v_pred": EMPTY}, {"modelspec.prediction_type": "v"}, V),
        ({}, {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}),
        ({}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, V),
        ({}, {"modelspec.architecture": "stable-diffusion-xl-v1-base", "ss_v_parameterization": "False"}, {}),
        ({}, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, V | ZERO),
        ({}, {"ss_v_parameterization": "true", "ss_zero_terminal_snr": "1"}, V | ZERO),
        ({}, {"ss_v_parameterization": "None", "ss_zero_terminal_snr": ""}, {}),
        ({}, {"modelspec.prediction_type": " V-Prediction"}, V),
        (
            {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.5)},
            {},
            V | {"kind": "EDM", "sigma_max": 120.0, "sigma_min": 0.5},
        ),
    ],
)
def test_markers_state_options_of_a_scheduler(
    tensors: Tensors, metadata: dict[str, str], options: dict[str, object]
) -> None:
    assert marked_options(tensors, metadata, "x") == options


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"v_pred": EMPTY}, {"modelspec.prediction_type": "epsilon"}, "v_pred says prediction_type=v_prediction, mod"),
        ({"ztsnr": EMPTY}, {}, "ztsnr says zero terminal SNR"),
        ({}, {"ss_zero_terminal_snr": "True", "modelspec.prediction_type": "epsilon"}, "says zero terminal SNR"),
        ({}, {"modelspec.prediction_type": "x0"}, "modelspec.prediction_type is 'x0'"),
        ({}, {"ss_v_parameterization": "maybe"}, "ss_v_parameterization is 'maybe'"),
        ({"edm_vpred.sigma_max": EMPTY}, {}, "the marker edm_vpred.sigma_max holds no number"),
    ],
)
def test_rejects_markers_that_disagree(tensors: Tensors, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        marked_options(tensors, metadata, "x")


@pytest.mark.parametrize(
    "class_",
    [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler, diffusers.UniPCMultistepScheduler],
)
def test_a_scheduler_follows_the_file_as_diffusers_configures_it(class_: Any) -> None:
    configured = class_(beta_start=0.001, timestep_spacing="leading")
    scheduler = follow_markers(configured, V | ZERO, "x")
    expected = class_(beta_start=0.001, **V, **ZERO)
    scheduler.set_timesteps(5)
    expected.set_timesteps(5)
    assert dict(scheduler.config) == dict(expected.config)
    assert torch.equal(scheduler.timesteps, expected.timesteps)


def test_a_scheduler_that_agrees_stays_as_it_is() -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction")
    assert follow_markers(scheduler, V, "x") is scheduler
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    assert follow_markers(flow, {"kind": "flow"}, "x") is flow


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        (diffusers.PNDMScheduler(), V | ZERO, "PNDMScheduler has no rescale_betas_zero_snr"),
        (diffusers.DDIMScheduler(**V), {"prediction_type": "epsilon"}, "its scheduler's configuration v_prediction"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), V, "FlowMatchEulerDiscreteScheduler samples flow models"),
        (diffusers.DDIMScheduler(), {"kind": "EDM"}, "DDIMScheduler samples noise models"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rejects_a_scheduler_that_cannot_follow_the_file(
    scheduler: Any, options: dict[str, object], message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        follow_markers(scheduler, options, "x")


def test_a_marked_file_loads_with_its_schedule_whatever_the_sampler(
    single_file: Path, original_weights: Tensors, config_metadata: dict[str, str]
) -> None:
    save_file(original_weights | {"v_pred": EMPTY, "ztsnr": EMPTY}, single_file, config_metadata)
    for scheduler in (load(single_file).scheduler, load(single_file, sampler="euler").scheduler):
        assert {key: scheduler.config[key] for key in V | ZERO} == V | ZERO
    with pytest.raises(LoadError, match="PNDMScheduler has no"):
        load(single_file, sampler="pndm")


def test_an_empty_tensor_of_unknown_meaning_is_named(
    single_file: Path, original_weights: Tensors, config_metadata: dict[str, str]
) -> None:
    save_file(original_weights | {"mystery": EMPTY}, single_file, config_metadata)
    with pytest.warns(DiffcWarning, match="no component uses 1 tensor: mystery"):
        load(single_file)
