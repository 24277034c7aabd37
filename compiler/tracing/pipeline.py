"""Trace a diffusers pipeline for one request: which inputs it has, and one program for each step count and guidance."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Integral
from types import MappingProxyType
from typing import Any

import torch
import transformers

from diffc.compiler.errors import BuildError, CaptureError, DiffcWarning
from diffc.compiler.ir.program import Program
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.component_run import ComponentRuns
from diffc.compiler.tracing.crossed_rows import refuse_crossed_rows
from diffc.compiler.tracing.image_form import AsImage, check_rows, image_form
from diffc.compiler.tracing.marked_generators import with_separate_noise
from diffc.compiler.tracing.noise_of_texts import with_noise_of_texts
from diffc.compiler.tracing.noise_rows import IMAGES, SEEDS, generators, with_rows_of_noise
from diffc.compiler.tracing.pipeline_errors import PipelineRefusal, size_fix
from diffc.compiler.tracing.pipeline_inputs import (
    Size,
    as_arguments,
    call_parameters,
    parameter_at,
    program_name,
    requested_arrays,
    takes_tuples,
    with_conditions,
)
from diffc.compiler.tracing.request_inputs import Image, Number, RequestInput, Text
from diffc.compiler.tracing.schedule_faults import check_finite, explained
from diffc.compiler.tracing.symbolic_array import SymbolicArray
from diffc.compiler.tracing.symbolic_scalar import COMPARISONS
from diffc.compiler.tracing.trace import trace_function
from diffc.compiler.tracing.traced_function import TracedFunction
from diffc.runtime.program.facts import NO_NEGATIVE, UNGUIDED, Facts

NEGATIVE = "negative_prompt"
TEXTS = ("prompt", NEGATIVE)
GUIDANCE = "guidance_scale"
SCALES = (GUIDANCE, "true_cfg_scale")
CALLBACK = "callback_on_step_end"
STRENGTH = "strength"
STEPS = "num_inference_steps"
GENERATOR = "generator"
COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
OF_THE_RUN = (GENERATOR, "latents", *COUNTS)
"""Arguments of a pipeline's call that the runtime decides: seeds, first noises, the number of images."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Hold the values that are fixed at build: task, steps, size in pixels, batch, strength, default guidance.

    None stands for the pipeline's default. ``options`` are other arguments of its call, by name, and ``inputs`` the
    kinds of those that the request sets. With ``says_size`` the names of programs contain the size. `trace_pipeline`
    finds out ``as_image``: how the pipeline is handed its images, None for tensors, and whether it ``takes_lists`` of
    texts.
    """

    task: str = "text-to-image"
    steps: int | None = None
    guidance: float | None = None
    size: Size | None = None
    says_size: bool = False
    batch: int = 1
    strength: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    as_image: AsImage | None = None
    takes_lists: bool = True


def requested_sizes(size: Any) -> tuple[Size, ...]:
    """List each size once, from an edge of a square, a width and a height, or several of these; none for None.

    Raises `BuildError` for what is no size.
    """
    several = isinstance(size, Sequence) and not any(isinstance(edge, Integral) for edge in size)
    sizes = size if several else () if size is None else (size,)
    return tuple(dict.fromkeys(_size(item) for item in sizes))


def _size(item: Any) -> Size:
    edges = (item, item) if isinstance(item, Integral) else item
    are_edges = isinstance(edges, Sequence) and len(edges) == 2 and all(isinstance(edge, Integral) for edge in edges)
    if not are_edges or any(isinstance(edge, bool) or edge < 1 for edge in edges):
        raise BuildError(f"{item!r} is no size", fix="pass width and height in pixels, such as (512, 512)")
    return int(edges[0]), int(edges[1])


def default_steps(pipeline: Any) -> int:
    """Return the default number of steps of the pipeline; one where it takes no number of steps."""
    parameter = call_parameters(pipeline).get(STEPS)
    return 1 if parameter is None else int(parameter.default)


def trace_pipeline(pipeline: Any, sampling: Sampling, calls: ComponentCalls) -> list[Program]:
    """Trace the pipeline; where it drops its guidance branch at scale 1, trace it without as well.

    Where no negative prompt differs from an empty one, there is a program for that too. The texts of one image are
    handed over in lists, or as they are where the pipeline refuses lists.

    Raises `CaptureError` with the pipeline's file, line and source where it cannot be traced, and `BuildError` with
    what would work where that is the schedule's fault.
    """
    try:
        return _programs(pipeline, sampling, calls)
    except PipelineRefusal as error:
        error.fix = size_fix(pipeline, sampling.size) or error.fix
        if sampling.batch > 1:
            raise
        try:
            return _programs(pipeline, replace(sampling, takes_lists=False), calls)
        except PipelineRefusal:
            raise error from error.__cause__


def _programs(pipeline: Any, sampling: Sampling, calls: ComponentCalls) -> list[Program]:
    """Trace the pipeline for each variant of the request that is served by a program of its own."""
    steps = default_steps(pipeline) if sampling.steps is None else sampling.steps
    if steps < 1:
        raise BuildError(f"{steps} steps", fix="ask for one step or more")
    if steps > 1 and STEPS not in call_parameters(pipeline):
        what = "this pipeline takes no number of steps"
        raise BuildError(what, where=type(pipeline).__name__, fix="leave --steps out")
    facts = Facts(sampling.task, steps, sampling.size)
    scales = _scales(pipeline, call_parameters(pipeline), sampling)
    sampling = replace(sampling, as_image=_image_form(pipeline, sampling, scales, facts, calls.runs))
    first = _first(pipeline, sampling, scales, facts, calls)
    refuse_crossed_rows(first)
    ranges = [guard for guard in first.guards if guard.scalar in SCALES and guard.comparison != "=="]
    off = {guard.scalar: 1.0 for guard in ranges if not COMPARISONS[guard.comparison](1.0, guard.bound)}
    programs = [first]
    if any(item.name == NEGATIVE for item in first.inputs):
        programs += _without_negative(pipeline, sampling, scales, facts, calls)
    if off:
        programs += _unguided(pipeline, sampling, scales | off, facts, calls)
    counts = [name for name in COUNTS if name in call_parameters(pipeline)]
    rows = ComponentCalls(calls.runs)

    def record(program: Program, texts: int, images: int, one_generator_each: bool) -> Program:
        if (images > 1 and not counts) or (texts > 1 and not sampling.takes_lists):
            raise CaptureError(f"the pipeline takes one image of {'a text' if images > 1 else 'one text'}")
        changes = {UNGUIDED: off, NO_NEGATIVE: _absent(pipeline)}
        variant = changes.get(program.facts.variant, {}) if program.facts else {}
        seeded = {GENERATOR: generators()} if one_generator_each else {}
        overrides = {**scales, **dict.fromkeys(counts[:1], images), **variant, **seeded}
        call, _ = _traced_call(pipeline, replace(sampling, batch=texts), {}, facts, rows, overrides)
        with _own_state(pipeline):
            return call.recorded()

    if first.arrays and counts:
        programs = with_rows_of_noise(programs, lambda program, each: record(program, 1, IMAGES, each))
    elif first.texts and not first.arrays:
        programs = with_noise_of_texts(programs, record)
    return [with_separate_noise(program) for program in programs]


def _first(
    pipeline: Any, sampling: Sampling, scales: Mapping[str, float], facts: Facts, calls: ComponentCalls
) -> Program:
    """Trace the program that the request gets by default; where that fails, find out whether the schedule is why."""

    def trial(
        scheduler: Any = None, steps: int = facts.steps, strength: float | None = sampling.strength
    ) -> Callable[[], Program]:
        def run() -> Program:
            with _own_state(pipeline, scheduler):
                changed = replace(sampling, strength=strength)
                return _trace(pipeline, changed, scales, replace(facts, steps=steps), calls)

        return run

    try:
        return trial()()
    except CaptureError as error:
        if STEPS not in call_parameters(pipeline):
            raise
        default = call_parameters(pipeline).get(STRENGTH)
        strength = sampling.strength if sampling.strength is not None or default is None else default.default
        explanation = explained(error, pipeline, facts.steps, strength, trial)
        if explanation is error:
            raise
        raise explanation from error


def _image_form(
    pipeline: Any, sampling: Sampling, scales: Mapping[str, float], facts: Facts, runs: ComponentRuns
) -> AsImage | None:
    """Return how the pipeline is handed the images of the request; None for tensors, and where there are none."""
    arrays = requested_arrays(pipeline, sampling.inputs, batch=sampling.batch, size=sampling.size)
    if not any(isinstance(item, Image) for item in arrays.values()):
        return None

    def traced(form: AsImage | None, batch: int = sampling.batch) -> Program:
        changed = replace(sampling, as_image=form, batch=batch)
        return _trace(pipeline, changed, {}, facts, ComponentCalls(runs), dict(scales))

    form = image_form(traced)
    if form is not None and sampling.batch > 1:
        check_rows(traced(form), traced(form, 1))
    return form


def text_inputs(parameters: Collection[str], inputs: Collection[str]) -> list[str]:
    """List the texts that a pipeline takes of a request, but for those whose embeddings are among the inputs."""
    return [text for text in TEXTS if text in parameters and f"{text}_embeds" not in inputs]


def _without_negative(
    pipeline: Any, sampling: Sampling, scales: Mapping[str, float], facts: Facts, calls: ComponentCalls
) -> list[Program]:
    """Trace the pipeline without a negative prompt where that differs from an empty one; warn where it refuses that."""
    try:
        if not _needs_negative(pipeline, sampling, scales, facts, calls.runs):
            return []
        return [_trace(pipeline, sampling, scales, replace(facts, variant=NO_NEGATIVE), calls, _absent(pipeline))]
    except PipelineRefusal:
        what = f"{type(pipeline).__name__} refuses a request without {NEGATIVE}: the bundle takes an empty one for it"
        warnings.warn(what, DiffcWarning, stacklevel=2)
        return []


def _unguided(
    pipeline: Any, sampling: Sampling, scales: Mapping[str, float], facts: Facts, calls: ComponentCalls
) -> list[Program]:
    """Trace the pipeline with scales that turn guidance off; warn where it refuses them."""
    try:
        return [_trace(pipeline, sampling, scales, replace(facts, variant=UNGUIDED), calls)]
    except PipelineRefusal as error:
        what = f"{type(pipeline).__name__} refuses a request without guidance, and so will the bundle: {error.what}"
        warnings.warn(what, DiffcWarning, stacklevel=2)
        return []


def _absent(pipeline: Any) -> dict[str, Any]:
    """Return the arguments of a request without a negative prompt; none where the pipeline takes no such prompt."""
    parameters = call_parameters(pipeline)
    return {NEGATIVE: parameters[NEGATIVE].default} if NEGATIVE in parameters else {}


def _needs_negative(
    pipeline: Any, sampling: Sampling, scales: Mapping[str, float], facts: Facts, runs: ComponentRuns
) -> bool:
    """Return whether the pipeline does something else without a negative prompt than with an empty one."""
    absent, calls = _absent(pipeline), ComponentCalls(runs)
    if absent[NEGATIVE] == "":
        return False
    empty = {NEGATIVE: [""] * sampling.batch if sampling.takes_lists else ""}
    without_negative, with_empty = (
        _trace(pipeline, sampling, {}, facts, calls, {**scales, **negative}) for negative in (absent, empty)
    )
    return without_negative != with_empty


def _scales(pipeline: Any, parameters: Mapping[str, Any], sampling: Sampling) -> dict[str, float]:
    """Return the default of each scale of guidance that the pipeline takes, but for those that it leaves out itself."""
    if GUIDANCE not in parameters and sampling.guidance not in (None, 1.0):
        raise BuildError(
            "this pipeline takes no guidance scale", where=type(pipeline).__name__, fix="leave --guidance out"
        )
    options = {**sampling.options, GUIDANCE: sampling.guidance}
    scales = {name: parameters[name].default for name in SCALES if name in parameters}
    scales |= {name: options[name] for name in scales if options.get(name) is not None}
    for name, scale in scales.items():
        if scale is not None and (not isinstance(scale, int | float) or isinstance(scale, bool)):
            raise BuildError(f"{name} is {scale!r}", where="--set", fix="use a number")
    return {name: float(scale) for name, scale in scales.items() if scale is not None}


def _trace(
    pipeline: Any,
    sampling: Sampling,
    scales: Mapping[str, float],
    facts: Facts,
    calls: ComponentCalls,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Program:
    """Trace the pipeline for the scalars ``scales``, and for the values of other arguments in ``overrides``."""
    call, fixed = _traced_call(pipeline, sampling, scales, facts, calls, overrides)
    with _own_state(pipeline):
        program = trace_function(call, program_name(facts, says_size=sampling.says_size))
        check_finite(program)
        if fixed.get(STRENGTH) is not None and call.on_step and all(op.operator != "step" for op in program.ops):
            raise CaptureError(f"a strength of {fixed[STRENGTH]:g} leaves no step", fix="use a larger --strength")
        return replace(program, facts=facts)


def _traced_call(
    pipeline: Any,
    sampling: Sampling,
    scales: Mapping[str, float],
    facts: Facts,
    calls: ComponentCalls,
    overrides: Mapping[str, Any],
) -> tuple[TracedFunction, Mapping[str, Any]]:
    """Return the pipeline's call with its inputs, and the arguments that are fixed."""
    parameters = call_parameters(pipeline)
    texts = [text for text in text_inputs(parameters, sampling.inputs) if text not in overrides]
    inputs: dict[str, RequestInput] = {text: Text(sampling.batch) for text in texts}
    fixed: dict[str, Any] = {STEPS: facts.steps, "output_type": "np", "return_dict": False}
    fixed = {option: value for option, value in fixed.items() if option in parameters}
    inputs |= requested_arrays(pipeline, sampling.inputs, batch=sampling.batch, size=sampling.size)
    if GENERATOR in parameters:
        fixed[GENERATOR] = generators()[0]
    if sampling.size is not None and {"width", "height"} <= parameters.keys():
        fixed |= {"width": sampling.size[0], "height": sampling.size[1]}
    if sampling.strength is not None:
        if STRENGTH not in parameters:
            raise BuildError("this task takes no strength", where=sampling.task, fix="leave --strength out")
        fixed[STRENGTH] = sampling.strength
    options = {option: value for option, value in sampling.options.items() if option not in overrides}
    taken = {*inputs, *sampling.inputs, *fixed, *overrides, GUIDANCE, CALLBACK, STRENGTH, *OF_THE_RUN}
    fixed |= _options(pipeline, parameters, taken, options)
    inputs |= {scale: Number(default) for scale, default in scales.items()}
    fixed = {option: value for option, value in fixed.items() if option not in scales} | dict(overrides)
    components = {key: c for key, c in pipeline.components.items() if isinstance(c, torch.nn.Module)}
    tokenizers = {
        key: c for key, c in pipeline.components.items() if isinstance(c, transformers.PreTrainedTokenizerBase)
    }
    takes_callback = CALLBACK in parameters
    function = _call(pipeline, fixed, sampling, takes_callback=takes_callback)
    call = TracedFunction(
        function=function,
        components=components,
        inputs=inputs,
        calls=calls,
        tokenizers=tokenizers,
        on_step="on_step" if takes_callback else None,
        seeds=SEEDS,
    )
    return call, fixed


def _options(
    pipeline: Any, parameters: Mapping[str, Any], taken: Collection[str], options: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Check that the pipeline takes the options, and that no other option sets them."""
    free = [name for name in parameters if name not in ("self", *taken)]
    paths = [name for name in options if "." in name and name not in taken and parameter_at(parameters, name)]
    if unknown := [name for name in options if name not in (*free, *paths)]:
        what = f"{type(pipeline).__name__} takes no {unknown[0]} here"
        raise BuildError(what, where="--set", fix=f"set one of {', '.join(free)}")
    return {
        name: tuple(value) if isinstance(value, list) and name in free and takes_tuples(parameters[name]) else value
        for name, value in options.items()
    }


def _call(pipeline: Any, fixed: Mapping[str, Any], sampling: Sampling, *, takes_callback: bool) -> Callable[..., Any]:
    def call(on_step: Callable[[Any], None] | None = None, **request: Any) -> Any:
        def after(_pipeline: Any, _index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            if on_step:
                on_step(values.get("latents"))
            return values

        if not sampling.takes_lists:
            request |= {text: request[text][0] for text in TEXTS if text in request}
        arguments = as_arguments(pipeline, sampling.inputs, request, sampling.as_image)
        arguments = with_conditions(pipeline, {**arguments, **fixed})
        result = pipeline(**arguments, **({CALLBACK: after} if takes_callback else {}))
        first = result[0] if isinstance(result, tuple) else result
        return _channels_first(first.tensor() if isinstance(first, SymbolicArray) else first)

    return call


def _channels_first(result: Any) -> Any:
    """Move the channels of images and videos from NumPy's last place before the height; keep other results."""
    ends_with_channels = (
        isinstance(result, torch.Tensor)
        and result.dim() in (4, 5)
        and result.shape[-1] in (1, 3)
        and result.shape[-3] not in (1, 3)
    )
    return result.movedim(-1, -3) if ends_with_channels else result


@contextmanager
def _own_state(pipeline: Any, scheduler: Any = None) -> Iterator[None]:
    """Hand a run of the pipeline schedulers without memory of earlier runs, or another, and forget what it keeps."""
    before = dict(vars(pipeline))
    own = {name: value for name, value in before.items() if hasattr(value, "set_timesteps")}
    own |= {"scheduler": scheduler} if scheduler else {}
    vars(pipeline).update({name: copy.deepcopy(value) for name, value in own.items()})
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        vars(pipeline).clear()
        vars(pipeline).update(before)
