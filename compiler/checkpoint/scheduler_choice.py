"""Replace the scheduler of a pipeline, by a short name of ``samplers.toml`` or by the name of a scheduler's class.

The classes are diffusers', and in ``schedulers/`` those that it lacks.

A checkpoint is trained to predict noise or a flow; a sampler that integrates the other returns noise. So the kinds of
both are compared, as far as the signatures and configurations of their schedulers show them.
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
# With one of these options schedulers for both kinds space noise levels as for noise prediction, and return NaN.
OTHER_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
NO_SAMPLER = "leave out --sampler to keep the checkpoint's own"


@dataclass(frozen=True)
class Sampler:
    """Name a scheduler class and its options beyond the checkpoint's configuration."""

    class_name: str
    options: Mapping[str, object] = field(default_factory=dict)


@cache
def samplers() -> Mapping[str, Sampler]:
    """Read the table of short names."""
    table = tomllib.loads(Path(__file__).with_name("samplers.toml").read_text(encoding="utf-8"))
    return {name: Sampler(entry["class"], entry.get("options", {})) for name, entry in table.items()}


def new_scheduler(name: str, current: Any) -> Any:
    """Return a scheduler of the named class with the configuration of the checkpoint's own scheduler.

    Raises `LoadError` where the name is unknown or the sampler does not use the checkpoint's kind of prediction.
    """
    sampler = samplers().get(name, Sampler(name))
    class_ = _class_of(name, sampler)
    config = dict(current.config)
    trained = kind_of(type(current), config)
    options = dict(sampler.options) | _flow_options(class_, config) if trained == FLOW else sampler.options
    _refuse_other_kind(name, class_, trained, config)
    try:
        return class_.from_config(current.config, **options)
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        what = f"sampler {name!r} refuses the checkpoint's schedule: {str(error).splitlines()[0]}"
        raise LoadError(what, where=sampler.class_name, fix=NO_SAMPLER) from error


def scheduler_class(class_name: str) -> Any:
    """Find a class among diffc's schedulers and in diffusers; return None where neither has it."""
    return getattr(schedulers, class_name, None) or getattr(diffusers, class_name, None)


def _class_of(name: str, sampler: Sampler) -> Any:
    class_ = scheduler_class(sampler.class_name)
    try:
        getattr(class_, "step", None)  # the placeholder of a class whose package is missing raises here
    except ImportError as error:
        raise LoadError(f"sampler {name!r} needs a package that is missing", fix=str(error).strip()) from error
    if isinstance(class_, type) and issubclass(class_, diffusers.SchedulerMixin):
        return class_
    guess = "".join(f"did you mean {close}? " for close in difflib.get_close_matches(name.lower(), samplers(), n=1))
    fix = f"{guess}known: {', '.join(samplers())}, or a scheduler class of diffusers"
    raise LoadError(f"unknown sampler {name!r}", fix=fix)


def kind_of(class_: Any, config: Mapping[str, Any]) -> str:
    """Return the kind of prediction that a scheduler integrates, or its class name where its signature hides it."""
    parameters = inspect.signature(class_.__init__).parameters
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return FLOW
    if "beta_schedule" in parameters:
        return NOISE
    if "sigma_data" in parameters:
        return EDM
    return FLOW if "shift" in parameters else str(class_.__name__)


def _flow_options(class_: Any, config: Mapping[str, Any]) -> dict[str, object]:
    """Return the options with which a scheduler for both kinds integrates a flow, with the checkpoint's shift."""
    parameters = inspect.signature(class_.__init__).parameters
    shift = config.get("shift", config.get("flow_shift", 1.0))
    if "use_flow_sigmas" in parameters:
        key = "flow_shift" if "flow_shift" in parameters else "shift"
        spacing = {name: False for name in OTHER_SPACINGS if name in parameters}
        return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", key: shift, **spacing}
    return {"shift": shift} if "shift" in parameters else {}


def _refuse_other_kind(name: str, class_: Any, trained: str, config: Mapping[str, Any]) -> None:
    if not _can_follow(class_, trained):
        fitting = [each for each, s in samplers().items() if _can_follow(scheduler_class(s.class_name), trained)]
        kind = kind_of(class_, {})
        what = f"sampler {name!r} is for {kind} models, this checkpoint is a {trained} model"
        fix = f"choose one of {', '.join(fitting)}" if fitting else NO_SAMPLER
        raise LoadError(what, where=class_.__name__, fix=fix)
    prediction = config.get("prediction_type", "epsilon")
    parameters = inspect.signature(class_.__init__).parameters
    if trained == NOISE and prediction != "epsilon" and "prediction_type" not in parameters:
        what = f"sampler {name!r} knows noise prediction only, the checkpoint's is {prediction!r}"
        raise LoadError(what, where=class_.__name__, fix=NO_SAMPLER)


def _can_follow(class_: Any, trained: str) -> bool:
    both = "use_flow_sigmas" in inspect.signature(class_.__init__).parameters
    return kind_of(class_, {}) == trained or (both and trained == FLOW)
