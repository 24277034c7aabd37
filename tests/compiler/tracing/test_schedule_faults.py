"""A schedule without a step, or with NaN, is refused by its scheduler, step and settings, and by what would work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest

from diffc.compiler.errors import BuildError, CaptureError
from diffc.compiler.ir.program import Op, Polynomial, Program, Ref, Table, Type, Value
from diffc.compiler.tracing.component_calls import ComponentCalls
from diffc.compiler.tracing.pipeline import Sampling, trace_pipeline
from diffc.compiler.tracing.schedule_faults import NotFiniteError, check_finite
from tests.zoo import ZOO


def refused(name: str, scheduler: Any = None, **sampling: Any) -> BuildError:
    """Trace a pipeline of the zoo, which has to fail, and return the error."""
    pipeline = ZOO[name]().pipeline
    pipeline.scheduler = scheduler or pipeline.scheduler
    with pytest.raises(BuildError) as caught:
        trace_pipeline(pipeline, Sampling(**sampling), ComponentCalls())
    return caught.value


def traced(name: str, scheduler: Any = None, **sampling: Any) -> int:
    """Trace a pipeline of the zoo, and count the steps of its first program."""
    pipeline = ZOO[name]().pipeline
    pipeline.scheduler = scheduler or pipeline.scheduler
    program = trace_pipeline(pipeline, Sampling(**sampling), ComponentCalls())[0]
    return sum(op.operator == "step" for op in program.ops)


def test_a_strength_without_a_step_names_those_that_have_one() -> None:
    name, options = "StableDiffusionImg2ImgPipeline", {"task": "image-to-image", "guidance": 1.0}
    error = refused(name, strength=0.4, steps=2, **options)
    assert error.what == "a strength of 0.4 leaves no step of 2"
    assert error.where == "StableDiffusionImg2ImgPipeline with EulerAncestralDiscreteScheduler"
    assert error.fix == "use --strength 0.5 or more, or --steps 3 or more"
    assert traced(name, strength=0.4, steps=3, **options) == 1
    assert refused(name, strength=0.0, steps=2, **options).fix == "use --strength 0.5 or more"


def test_the_pipelines_own_strength_is_named_too() -> None:
    error = refused("StableDiffusionImg2ImgPipeline", task="image-to-image", steps=1)
    assert error.what == "a strength of 0.8 leaves no step of 1" and "--strength 1 or more" in str(error.fix)


def test_zero_terminal_snr_with_noise_prediction_names_the_settings_that_work() -> None:
    def scheduler(**changes: Any) -> Any:
        options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
        return diffusers.DDIMScheduler(**options | changes)

    error = refused("StableDiffusionPipeline", scheduler(), steps=3)
    assert error.what == "DDIMScheduler cannot make 3 steps: step 1 divides by zero"
    assert "rescale_betas_zero_snr=True" in str(error.where)
    assert "timestep_spacing='leading' or rescale_betas_zero_snr=False" in str(error.fix)
    for change in ({"timestep_spacing": "leading"}, {"rescale_betas_zero_snr": False}):
        assert traced("StableDiffusionPipeline", scheduler(**change), steps=3) == 3


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_one_step_with_a_shifted_terminal_names_two(name: str) -> None:
    error = refused(name, diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1), steps=1)
    assert error.what.startswith("FlowMatchEulerDiscreteScheduler cannot make 1 step: ")
    assert "shift_terminal=0.1" in str(error.where)
    assert "it works with --steps 2 or shift_terminal=None" in str(error.fix)


def test_a_failure_elsewhere_is_not_the_schedules() -> None:
    pipeline = ZOO["StableDiffusionPipeline"]().pipeline
    with pytest.raises(CaptureError, match="divisible by 8") as caught:
        trace_pipeline(pipeline, Sampling(steps=1, size=(17, 16)), ComponentCalls())
    assert "pipeline_stable_diffusion.py" in str(caught.value.where)


X = Value("x", Type("float32", (2,)))
NAN, INFINITY = float("nan"), float("inf")
FAULTS: dict[str, tuple[Callable[[], Op], str]] = {
    "divides": (lambda: Op("aten.div.Tensor", (Ref("n"), 0.0), (), results=(X,)), "step 2 divides by zero"),
    "nan": (lambda: Op("aten.mul.Tensor", (Ref("n"), NAN), (), results=(X,)), "step 2 computes with NaN"),
    "infinite": (
        lambda: Op("aten.mul.Tensor", (Ref("n"), INFINITY), (), results=(X,)),
        "step 2 computes with infinity",
    ),
    "port": (lambda: Op("unet", (), (("timestep", (NAN,)),), results=(X,)), "step 2 computes with NaN"),
    "factor": (lambda: Op("linear", (Ref("n"),), (), (Polynomial.constant(NAN),), (X,)), "step 2 computes with NaN"),
    "table": (lambda: Op("aten.mul.Tensor", (Ref("n"), Ref("t")), (), results=(X,)), "step 2 computes with NaN"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_constant_that_is_not_finite_is_refused_by_its_step(fault: str) -> None:
    table = Table("t", Type("float32", (2,)), np.array([1.0, NAN], np.float32))
    op, message = FAULTS[fault]
    noise = Op("noise", (), (), results=(Value("n", Type("float32", (2,))),))
    step = Op("step", (Ref("n"),), (), (Polynomial.constant(1.0),))
    with pytest.raises(NotFiniteError, match=message):
        check_finite(Program("main", (), (), (), (table,), (noise, step, op()), ("x",)))


def test_a_clamp_without_an_upper_bound_is_none_of_these() -> None:
    noise = Op("noise", (), (), results=(Value("n", Type("float32", (2,))),))
    clamp = Op("aten.clamp.default", (Ref("n"), 0.0, INFINITY), (), results=(X,))
    check_finite(Program("main", (), (), (), (), (noise, clamp), ("x",)))
