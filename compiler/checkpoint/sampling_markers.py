"""Read the facts of sampling that a single file states, in tensors that carry no weights and in its metadata.

Trainers mark a model that predicts velocity with a tensor named ``v_pred``, and one trained with zero terminal SNR with
``ztsnr``; SAI's model metadata has ``modelspec.prediction_type``. In all else such a file looks like any other, and the
scheduler of its architecture would sample noise with it.

Papers: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022 (v-prediction).
        Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", WACV 2024 (zero terminal SNR).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from diffc.compiler.checkpoint.scheduler_choice import EDM, FLOW, kind_of
from diffc.compiler.errors import LoadError

Options = dict[str, object]

V_PREDICTION: Options = {"prediction_type": "v_prediction"}
ZERO_SNR: Options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""How diffusers' schedulers name the schedule of the second paper: rescaled betas, and steps that begin at the last."""

MARKERS: dict[str, Options] = {
    "v_pred": V_PREDICTION,
    "ztsnr": ZERO_SNR,
    "edm_mean": {"kind": EDM},
    "edm_std": {"kind": EDM},
    "edm_vpred.sigma_max": V_PREDICTION | {"kind": EDM, "sigma_max": float},
    "edm_vpred.sigma_min": V_PREDICTION | {"kind": EDM, "sigma_min": float},
}
"""Facts of a tensor's presence: options of the scheduler, and the kind of its class; ``float``: the tensor's value."""

METADATA: dict[str, dict[str, Options]] = {
    "modelspec.prediction_type": {
        "v": V_PREDICTION,
        "v_prediction": V_PREDICTION,
        "v-prediction": V_PREDICTION,
        "vpred": V_PREDICTION,
        "epsilon": {"prediction_type": "epsilon"},
        "eps": {"prediction_type": "epsilon"},
        "flow": {"kind": FLOW},
    },
    "modelspec.architecture": {"stable-diffusion-v2-768-v": V_PREDICTION},
    "ss_v_parameterization": {"true": V_PREDICTION, "1": V_PREDICTION, **dict.fromkeys(("false", "0", "none"), {})},
    "ss_zero_terminal_snr": {"true": ZERO_SNR, "1": ZERO_SNR, **dict.fromkeys(("false", "0", "none"), {})},
}
"""The facts that a value of the metadata states, in lower case."""

OPEN = ("modelspec.architecture",)
"""The keys of which most values state nothing of sampling."""

FIX = "ask the publisher which is true; a diffusers folder has one scheduler configuration"


def marked_options(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], where: str) -> Options:
    """Return the scheduler options that a file's markers state. Raises `LoadError` where two of them disagree."""
    stated: dict[str, tuple[str, object]] = {}
    for marker, options in _statements(tensors, metadata, where).items():
        for key, value in options.items():
            before, stated_value = stated.setdefault(key, (marker, value))
            if stated_value != value:
                raise LoadError(f"{before} says {key}={stated_value}, {marker} says {value}", where=where, fix=FIX)
    options = {key: value for key, (_, value) in stated.items()}
    if "rescale_betas_zero_snr" in options and options.get("prediction_type") != "v_prediction":
        marker = stated["rescale_betas_zero_snr"][0]
        what = f"{marker} says zero terminal SNR, where noise cannot be predicted, and nothing says v-prediction"
        raise LoadError(what, where=where, fix=FIX)
    return options


def _statements(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], where: str) -> dict[str, Options]:
    """Return the facts that each marker of a file states."""
    statements: dict[str, Options] = {}
    for name, options in MARKERS.items():
        if name in tensors:
            value = tensors[name]
            if float in options.values() and value.numel() != 1:
                raise LoadError(f"the marker {name} holds no number", where=where, fix=FIX)
            statements[name] = {key: float(value) if v is float else v for key, v in options.items()}
    for key, meanings in METADATA.items():
        text = metadata.get(key, "").strip().lower()
        if text in meanings:
            statements[key] = meanings[text]
        elif text and key not in OPEN:
            what = f"{key} is {metadata[key]!r}, which diffc does not know"
            raise LoadError(what, where=where, fix=f"known: {', '.join(meanings)}")
    return statements


def follow_markers(scheduler: Any, options: Mapping[str, object], where: str) -> Any:
    """Return a scheduler with the options that a file states.

    Options that the file does not state stay as configured. Raises `LoadError` where the class cannot follow them, and
    where the configuration has another prediction than a file that states the usual one.
    """
    class_ = type(scheduler)
    kind = kind_of(class_, scheduler.config)
    config = ({} if kind == FLOW else {"prediction_type": "epsilon"}) | dict(scheduler.config)
    changes = {key: value for key, value in options.items() if key != "kind" and config.get(key) != value}
    if options.get("kind", kind) != kind or (kind == FLOW and changes):
        what = f"the file says {_listed(options)}, and {class_.__name__} samples {kind} models"
        raise LoadError(what, where=where, fix="give the configuration that belongs to these weights")
    if changes.get("prediction_type") == "epsilon":
        what = f"the file says prediction_type=epsilon, its scheduler's configuration {config['prediction_type']}"
        raise LoadError(what, where=where, fix=FIX)
    if unknown := sorted(changes.keys() - inspect.signature(class_.__init__).parameters.keys()):
        what = f"the file says {_listed(options)}, and {class_.__name__} has no {', '.join(unknown)}"
        raise LoadError(what, where=where, fix="choose a sampler that has it: --sampler ddim, euler, dpmpp-2m or unipc")
    return class_.from_config(scheduler.config, **changes) if changes else scheduler


def _listed(options: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())
