"""Choose another sampler for a pipeline, by a short name of ``samplers.toml`` or by a scheduler's class name.

The classes are diffusers', and in ``schedulers/`` those that it lacks.

What a checkpoint predicts is part of its training; a sampler that integrates something else draws noise. So the kinds
of the two are compared, as far as the signatures and configurations of their schedulers show them.
"""

from __future__ import annotations

import difflib
import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import diffusers

from diffc.compiler.checkpoint import schedulers
from diffc.compiler.errors import LoadError

NOISE, FLOW, EDM = "noise", "flow", "EDM"
# Where one of these is on, schedulers for both kinds space noise levels as if the model were no flow, and draw NaN.
OTHER_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
NO_SAMPLER = "leave out --sampler to keep the checkpoint's own"


@dataclass(frozen=True)
class Sampler:
    """Name a scheduler class and what it is told beyond the checkpoint's configuration."""

    class_name: str
    options: Mapping[str, object] = field(default_factory=dict)


@cache
def samplers() -> Mapping[str, Sampler]:
    """Read the table of short names."""
    table = tomllib.loads(Path(__file__).with_name("samplers.toml").read_text(encoding="utf-8"))
    return {name: Sampler(entry["class"], entry.get("options", {})) for name, entry in table.items()}


def new_scheduler(name: str, current: Any) -> Any:
    """Make a scheduler of the named kind with the configuration of a checkpoint's own.

    Raises `LoadError` where the name is unknown or the sampler cannot use what the checkpoint was trained to predict.
    """
    sampler = samplers().get(name, Sampler(name))
    chosen = _class_of(name, sampler)
    config = dict(current.config)
    trained = _kind(type(current), config)
    options = dict(sampler.options) | _flow_options(chosen, config) if trained == FLOW else sampler.options
    _refuse_other_kind(name, chosen, trained, config)
    try:
        return chosen.from_config(current.config, **options)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        what = f"sampler {name!r} refuses the checkpoint's schedule: {str(error).splitlines()[0]}"
        raise LoadError(what, where=sampler.class_name, fix=NO_SAMPLER) from error


def scheduler_class(class_name: str) -> Any:
    """Find a name among diffc's own schedulers and in diffusers; give None where neither has it."""
    return getattr(schedulers, class_name, None) or getattr(diffusers, class_name, None)


def _class_of(name: str, sampler: Sampler) -> Any:
    found = scheduler_class(sampler.class_name)
    try:
        getattr(found, "step", None)  # what stands in for a class whose package is missing raises here
    except ImportError as error:
        raise LoadError(f"sampler {name!r} needs a package that is missing", fix=str(error).strip()) from error
    if isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin):
        return found
    guess = "".join(f"did you mean {close}? " for close in difflib.get_close_matches(name.lower(), samplers(), n=1))
    fix = f"{guess}known: {', '.join(samplers())}, or a scheduler class of diffusers"
    raise LoadError(f"unknown sampler {name!r}", fix=fix)


def _kind(chosen: Any, config: Mapping[str, Any]) -> str:
    """Say what a scheduler integrates, or its class name where its signature does not show it."""
    parameters = inspect.signature(chosen.__init__).parameters
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return FLOW
    if "beta_schedule" in parameters:
        return NOISE
    if "sigma_data" in parameters:
        return EDM
    return FLOW if "shift" in parameters else str(chosen.__name__)


def _flow_options(chosen: Any, config: Mapping[str, Any]) -> dict[str, object]:
    """Tell a scheduler for both kinds that this checkpoint predicts a flow, and hand over its shift."""
    parameters = inspect.signature(chosen.__init__).parameters
    shift = config.get("shift", config.get("flow_shift", 1.0))
    if "use_flow_sigmas" in parameters:
        key = "flow_shift" if "flow_shift" in parameters else "shift"
        spacing = {name: False for name in OTHER_SPACINGS if name in parameters}
        return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", key: shift, **spacing}
    return {"shift": shift} if "shift" in parameters else {}


def _refuse_other_kind(name: str, chosen: Any, trained: str, config: Mapping[str, Any]) -> None:
    if not _can_follow(chosen, trained):
        fitting = [other for other, s in samplers().items() if _can_follow(scheduler_class(s.class_name), trained)]
        kind = _kind(chosen, {})
        what = f"sampler {name!r} is for {kind} models, this checkpoint is a {trained} model"
        fix = f"choose one of {', '.join(fitting)}" if fitting else NO_SAMPLER
        raise LoadError(what, where=chosen.__name__, fix=fix)
    prediction = config.get("prediction_type", "epsilon")
    parameters = inspect.signature(chosen.__init__).parameters
    if trained == NOISE and prediction != "epsilon" and "prediction_type" not in parameters:
        what = f"sampler {name!r} knows noise prediction only, the checkpoint's is {prediction!r}"
        raise LoadError(what, where=chosen.__name__, fix=NO_SAMPLER)


def _can_follow(chosen: Any, trained: str) -> bool:
    both = "use_flow_sigmas" in inspect.signature(chosen.__init__).parameters
    return _kind(chosen, {}) == trained or (both and trained == FLOW)
